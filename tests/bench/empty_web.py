"""A bottle application that does nothing, served as one would: uvicorn, a2wsgi.

python tests/bench/empty_web.py PORT
"""

import sys

import a2wsgi
import bottle
import uvicorn

app = bottle.Bottle()


@app.get("/")
def nothing():
    """The same answer, whoever asks."""
    return "nothing"


if __name__ == "__main__":
    served = a2wsgi.WSGIMiddleware(app)
    uvicorn.run(served, host="127.0.0.1", port=int(sys.argv[1]), http="h11", log_level="error")
