"""From a JSON text to objects: `read` it, know its `keys`, `build` what it names, `check` it all."""
