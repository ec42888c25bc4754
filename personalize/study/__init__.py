"""The DreamBooth report's studies, run again, and what becomes of its conclusions."""
