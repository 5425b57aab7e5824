"""Items: the worked example of a domain. Copy the folder, rename, include its router in app/main.py."""
