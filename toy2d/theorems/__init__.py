"""Every statement of the theory as a function that returns both of its sides with their errors."""
