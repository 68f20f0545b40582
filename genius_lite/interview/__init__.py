"""`genius-lite init`: five questions, each answer checked at once, and a commented recipe that fits this machine."""
