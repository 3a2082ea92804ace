"""From JSON to objects: `read` it, know its `keys`, `build` what it names, `check` it all."""
