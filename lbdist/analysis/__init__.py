"""From rows to statistics, tables, figures and the report; imports neither torch nor ray."""
