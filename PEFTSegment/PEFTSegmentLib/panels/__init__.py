"""One panel a step; each fills one section of the module."""
