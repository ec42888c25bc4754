def draw_all(path): pass
