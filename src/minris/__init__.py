"""minris: the worklist of a small clinic, in one file.

Reception registers the patient on a web page. The machine finds the patient on its worklist
(Modality Worklist) and reports what it did (Modality Performed Procedure Step). The board shows
both.

The house has floors. A module imports only from the floors below its own, and within its folder
without a circle. New code finds its folder here first:

 1  standard      what DICOM says, as tables
    recent        what was used last, kept while there is room
 2  config        the settings
    dataset       encoded data sets: text, index, checks, matching, search, JSON, XML
 3  store         what is kept: models, rows, the one writer
    simulator     machines to try the box with
 4  access        who asks and when; devices, users, roles
 5  upper_layer   associations, opened by others and by us
    outbox        what others are to be told, as rows
    orders        patients, orders, scheduled steps, the worklist
 6  mpps          performed procedure steps
    ups           workitems, subscriptions, events
    doctor        what is known of a device, and what to do next
 7  images        which images are where, and whether they are safe
    interchange   import and export
 8  housekeeping  what is let go, and what is stuck
    delivery      what calls others, over and over
    web           the web server, and what a request is
 9  dimse         door 1: which DIMSE message calls which core function
    dicomweb      door 2: which HTTP request calls which core function
10  pages         the browser's side, a folder for each group of the menu
    conformance   the conformance statement, printed from the tables
11  appliance     start, stop, jobs, health
12  cli           the command line
"""

import logging
from pathlib import Path

__version__ = "0.1.0"

log = logging.getLogger("minris")

FOLDER = Path(__file__).resolve().parent  # where further languages are looked for
