"""What goes in: tables, images, phantoms."""
