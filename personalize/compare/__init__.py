"""Many runs from one base, trained and evaluated alike, in one table."""
