"""What the machine is: the only room that names a kind of accelerator or its libraries."""
