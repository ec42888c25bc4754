"""Several processes that train one run, and one network divided among them."""
