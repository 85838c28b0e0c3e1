"""How large a batch can a model take, what does it cost, and which remedy buys it back."""
