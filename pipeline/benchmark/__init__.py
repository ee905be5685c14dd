"""What the loader costs, beside what reading and decoding alone cost."""
