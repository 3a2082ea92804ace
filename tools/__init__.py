import armature.packages  # noqa: F401 (says what to type where a package is missing)
