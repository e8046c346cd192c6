"""Files written whole or not at all, mapped tables, cached arrays."""
