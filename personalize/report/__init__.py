"""One page that shows the toy and the full scale side by side."""
