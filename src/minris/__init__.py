"""minris: worklist and MPPS server of a small clinic, in one file.

Reception registers the patient on a web page. The modality finds the patient on its worklist
(Modality Worklist) and reports the exam (Modality Performed Procedure Step). The board shows
both.

The package has floors. A module imports only from lower floors, and within its folder without a
circle. Find the folder for new code here first:

 1  standard      the DICOM Standard, as tables
    recent        bounded caches of recently used values
    intake        the bytes of what others send, bounded over all of them
 2  config        the settings
    dataset       encoded data sets: text, index, checks, matching, search, JSON, XML
 3  store         the database: models, rows, the only writer
    simulator     simulated devices to test a server with
 4  access        the context of a request; devices, users, roles
 5  upper_layer   associations, incoming and outgoing
    outbox        messages to deliver, as rows
    orders        patients, orders, scheduled steps, the worklist
 6  mpps          performed procedure steps
    ups           workitems, subscriptions, events
    seen          what a form was made from, compared with what is there now
    doctor        troubleshooting of a device
 7  images        instance availability and storage commitment
    interchange   import and export
 8  housekeeping  retention, and what needs attention
    delivery      sending to receivers, with retries
    web           the web server and its requests
 9  dimse         which DIMSE message calls which core function
    dicomweb      which DICOMweb request calls which core function
10  pages         the web pages, a folder for each group of the menu
    conformance   the conformance statement, printed from the tables
11  appliance     start, stop, jobs, health
12  cli           the command line
"""

import logging
from pathlib import Path

__version__ = "0.1.0"

log = logging.getLogger("minris")

FOLDER = Path(__file__).resolve().parent  # further languages are read from here
