"""The lifecycle from raw web pages to a chatting assistant."""
