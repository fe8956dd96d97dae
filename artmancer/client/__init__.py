"""A client of the gateway, for Python programs. Example:

from artmancer.client import Client

with Client("http://127.0.0.1:8003") as artmancer:
    edited = artmancer.edit("room.jpg", "remove the lamp", mask="lamp-mask.png")
edited.save("room-without-lamp.png")

Client (blocking.py) and AsyncClient (asynchronous.py) only send and wait. Bodies are built in
bodies.py, answers are read in calls.py, patience.py says how long a gateway is waited for.
"""

from .asynchronous import AsyncClient
from .blocking import Client
from .bodies import ImageSource
from .results import EditResponse, JobStatus

__all__ = ["AsyncClient", "Client", "EditResponse", "ImageSource", "JobStatus"]
