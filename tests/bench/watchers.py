"""Plays any number of UPS watchers on one port: takes every report, and prints when.

    python tests/bench/watchers.py PORT

A line for each report: the watcher's AE title, the workitem's UID, time.perf_counter(). Accepts
whatever contexts and roles are proposed, and answers C-ECHO too.
"""

import asyncio
import struct
import sys
import time

import wire

RESPONSE_DUE = {0x0002, 0x1000, 0x1002}  # what a response repeats, if the request has it


class Watcher(asyncio.Protocol):
    """One association with one of the watchers."""

    def connection_made(self, transport):
        self.transport, self.buffer, self.command = transport, b"", b""

    def data_received(self, data):
        self.buffer += data
        while len(self.buffer) >= 6:
            kind, length = wire.PDU_HEADER.unpack_from(self.buffer)
            if len(self.buffer) < 6 + length:
                return
            body, self.buffer = self.buffer[6 : 6 + length], self.buffer[6 + length :]
            self.take(kind, body)

    def take(self, kind, body):
        """Answer one PDU."""
        if kind == wire.ASSOCIATE_RQ:
            self.title = body[4:20].decode().strip()
            self.transport.write(acceptance(body))
        elif kind == wire.P_DATA:
            self.take_values(body)
        else:
            self.transport.write(wire.PDU_HEADER.pack(wire.RELEASE_RP, 4) + bytes(4))
            self.transport.close()

    def take_values(self, body):
        """Gather the command set; answer after the last fragment of the message."""
        position = 0
        while position < len(body):
            length, control = wire.PDV_HEADER.unpack_from(body, position)
            value = body[position + 6 : position + 4 + length]
            self.command += value if control & 1 else b""
            position += 4 + length
            request = wire.command_elements(self.command) if control & 2 else None
            if request and (control == 2 or request[0x0800] == wire.NO_DATA_SET):
                self.answer(body[4], request)
                self.command = b""

    def answer(self, context_id, request):
        """Take a report, or a C-ECHO."""
        if 0x1000 in request:
            uid = request[0x1000].decode().rstrip("\0")
            print(self.title, uid, time.perf_counter())
        field = int.from_bytes(request[0x0100], "little")
        command = {number: request[number] for number in RESPONSE_DUE & request.keys()}
        command |= {0x0100: field | 0x8000, 0x0120: request[0x0110], 0x0800: 0x0101, 0x0900: 0}
        self.transport.write(wire.data_pdu(context_id, 3, wire.command_set(command)))


def acceptance(body):
    """The A-ASSOCIATE-AC that takes all that is proposed."""
    answer = body[:68]
    for kind, value in wire.items(body):
        if kind == 0x20:
            syntax = next(each for sub, each in wire.items(value, 4) if sub == 0x40)
            value = struct.pack("BxBx", value[0], 0) + wire.item(0x40, syntax)
            kind = 0x21
        answer += wire.item(kind, value)
    return wire.PDU_HEADER.pack(wire.ASSOCIATE_AC, len(answer)) + answer


async def main(port):
    """Listen until killed."""
    sys.stdout.reconfigure(line_buffering=True)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Watcher, wire.HOST, port, backlog=256)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
