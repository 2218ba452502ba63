"""State table of an association that a peer has opened (PS3.8 9.2)."""

from minris.standard.tables import grid_table

# The acceptor's half of the state machine: action and next state by event and state.
# local: "abort" in Sta2 is ours, for one connection too many
ASSOCIATION_STATES: dict[tuple[str, str], list[str]] = grid_table("PS3.8 Table 9-10", """
    event      | Sta1       | Sta2       | Sta3       | Sta6       | Sta7        | Sta8       | Sta10       | Sta11      | Sta12      | Sta13
    connected  | AE-5 Sta2  |            |            |            |             |            |             |            |            |
    ASSOCIATE-AC |          | AA-1 Sta13 | AA-8 Sta13 | AA-8 Sta13 | AA-8 Sta13  | AA-8 Sta13 | AA-8 Sta13  | AA-8 Sta13 | AA-8 Sta13 | AA-6 Sta13
    ASSOCIATE-RJ |          | AA-1 Sta13 | AA-8 Sta13 | AA-8 Sta13 | AA-8 Sta13  | AA-8 Sta13 | AA-8 Sta13  | AA-8 Sta13 | AA-8 Sta13 | AA-6 Sta13
    ASSOCIATE-RQ |          | AE-6 Sta3  | AA-8 Sta13 | AA-8 Sta13 | AA-8 Sta13  | AA-8 Sta13 | AA-8 Sta13  | AA-8 Sta13 | AA-8 Sta13 | AA-7 Sta13
    accept     |            |            | AE-7 Sta6  |            |             |            |             |            |            |
    reject     |            |            | AE-8 Sta13 |            |             |            |             |            |            |
    send data  |            |            |            | DT-1 Sta6  |             | AR-7 Sta8  |             |            |            |
    P-DATA     |            | AA-1 Sta13 | AA-8 Sta13 | DT-2 Sta6  | AR-6 Sta7   | AA-8 Sta13 | AA-8 Sta13  | AA-8 Sta13 | AA-8 Sta13 | AA-6 Sta13
    release    |            |            |            | AR-1 Sta7  |             |            |             |            |            |
    RELEASE-RQ |            | AA-1 Sta13 | AA-8 Sta13 | AR-2 Sta8  | AR-8 Sta10  | AA-8 Sta13 | AA-8 Sta13  | AA-8 Sta13 | AA-8 Sta13 | AA-6 Sta13
    RELEASE-RP |            | AA-1 Sta13 | AA-8 Sta13 | AA-8 Sta13 | AR-3 Sta1   | AA-8 Sta13 | AR-10 Sta12 | AR-3 Sta1  | AA-8 Sta13 | AA-6 Sta13
    released   |            |            |            |            |             | AR-4 Sta13 |             |            | AR-4 Sta13 |
    abort      |            | AA-1 Sta13 | AA-1 Sta13 | AA-1 Sta13 | AA-1 Sta13  | AA-1 Sta13 | AA-1 Sta13  | AA-1 Sta13 | AA-1 Sta13 |
    ABORT      |            | AA-2 Sta1  | AA-3 Sta1  | AA-3 Sta1  | AA-3 Sta1   | AA-3 Sta1  | AA-3 Sta1   | AA-3 Sta1  | AA-3 Sta1  | AA-2 Sta1
    closed     |            | AA-5 Sta1  | AA-4 Sta1  | AA-4 Sta1  | AA-4 Sta1   | AA-4 Sta1  | AA-4 Sta1   | AA-4 Sta1  | AA-4 Sta1  | AR-5 Sta1
    ARTIM      |            | AA-2 Sta1  |            |            |             |            |             |            |            | AA-2 Sta1
    invalid    |            | AA-1 Sta13 | AA-8 Sta13 | AA-8 Sta13 | AA-8 Sta13  | AA-8 Sta13 | AA-8 Sta13  | AA-8 Sta13 | AA-8 Sta13 | AA-7 Sta13
    """, str.split)  # fmt: skip
