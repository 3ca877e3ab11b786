"""The embedded small world: pool, suite, backbones."""
