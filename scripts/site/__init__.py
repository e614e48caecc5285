"""The pages of the documentation that are made from the code at each build; MkDocs calls `hooks`."""
