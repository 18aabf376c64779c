"""The formats on disk. Nothing else knows them."""
