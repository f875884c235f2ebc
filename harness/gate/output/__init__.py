"""A gate result in the forms people and CI systems read. Nothing here decides."""
