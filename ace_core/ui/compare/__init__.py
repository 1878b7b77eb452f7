"""The Compare tab: answers side by side, pinned and recorded runs, a prompt's layers."""
