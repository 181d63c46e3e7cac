"""The example flows, deployable by module path from an installed package."""
