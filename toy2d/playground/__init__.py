"""The toy under one's own hands: place the points, choose objectives, watch the classes move."""
