"""What a model may call: plain typed functions whose docstrings are the schema it reads."""
