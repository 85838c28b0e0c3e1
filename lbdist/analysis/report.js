// Sorts a table by the column whose head is clicked, shows what a mark of a figure stands for, and says where
// there is more to the right.
"use strict";
const look = () => {
  for (const box of document.querySelectorAll(".scroll"))
    box.classList.toggle("more", box.scrollWidth > box.clientWidth + 1);
};
look();
addEventListener("resize", look);
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0], first = [...body.rows];
  const key = (row, at) => {
    const cell = row.cells[at], value = cell.dataset.v;
    return value === undefined ? cell.firstChild.textContent : Number(value);
  };
  const before = (a, b) =>
    typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1;
  [...table.tHead.rows[0].cells].forEach((head, at) => {
    head.tabIndex = 0;
    head.title = "sort";
    const sort = () => {
      const now = head.ariaSort;  // down, up, and as it was
      for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
      let rows = first;
      if (now !== "ascending") {
        const way = now === "descending" ? 1 : -1;
        head.ariaSort = way > 0 ? "ascending" : "descending";
        rows = [...first].sort((a, b) => way * before(key(a, at), key(b, at)));
      }
      table.classList.toggle("sorted", rows !== first);
      body.append(...rows);
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      sort();
    });
  });
}
const tip = document.body.appendChild(document.createElement("div"));
tip.id = "tip";
tip.hidden = true;
for (const figure of document.querySelectorAll("figure svg")) {
  const marks = [...figure.querySelectorAll("use > title")].map((title) => {
    const mark = title.parentNode;  // shown here, and at once, not by the browser
    mark.dataset.tip = title.textContent;
    title.remove();
    return mark;
  });
  figure.addEventListener("pointermove", (event) => {
    let nearest = null, least = 18;  // pixels
    for (const mark of marks) {
      const box = mark.getBoundingClientRect();
      const away = Math.hypot(box.x + box.width / 2 - event.clientX, box.y + box.height / 2 - event.clientY);
      if (away < least) [nearest, least] = [mark, away];
    }
    tip.hidden = nearest === null;
    if (nearest === null) return;
    tip.textContent = nearest.dataset.tip;
    const left = Math.min(event.pageX + 14, scrollX + innerWidth - tip.offsetWidth - 8);
    tip.style.left = `${Math.max(scrollX + 8, left)}px`;
    tip.style.top = `${event.pageY + 16}px`;
  });
  figure.addEventListener("pointerleave", () => (tip.hidden = true));
}
