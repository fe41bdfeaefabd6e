"""HTTP/3 requests by aioquic, which leaves putting them together to its users."""

import asyncio
from contextlib import asynccontextmanager

from aioquic.asyncio.client import connect as quic_connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, StopSendingReceived, StreamReset

# RFC 9114 §7.2.6; aioquic reads it and tells nobody.
GOAWAY = 0x07
# RFC 9114 §8.1
NO_ERROR, REQUEST_REJECTED = 0x0100, 0x010B


class Refused(Exception):
    """The request was certainly not processed: the connection is going away, or was never there."""


class Broken(Exception):
    """The request may have been processed."""


class Watched(H3Connection):
    """Keeps what GOAWAY said, and knows that the answer to HEAD has a length and no body (RFC 9110 §8.6)."""

    goaway = None
    heads = frozenset()

    def _check_content_length(self, stream):
        if stream.stream_id not in self.heads:
            super()._check_content_length(stream)

    def _handle_control_frame(self, frame_type, frame_data):
        if frame_type == GOAWAY:
            self.goaway = int.from_bytes(frame_data, "big") & ((1 << (8 * len(frame_data) - 2)) - 1)
        super()._handle_control_frame(frame_type, frame_data)


class Client(QuicConnectionProtocol):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.http = Watched(self._quic)
        self.waiting = {}
        self.ended = None

    @property
    def usable(self):
        return self.ended is None and self.http.goaway is None

    @property
    def certificate(self):
        return self._quic.tls._peer_certificate

    async def request(self, method, authority, path, headers, body=None):
        """Gives status, headers and body, or raises Refused or Broken."""
        if not self.usable:
            raise Refused(f"going away: {self.ended or 'GOAWAY'}")
        stream = self._quic.get_next_available_stream_id()
        if method == "HEAD":
            self.http.heads |= {stream}
        head = [
            (b":method", method.encode()),
            (b":scheme", b"https"),
            (b":authority", authority.encode()),
            (b":path", path.encode()),
        ]
        head += [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        if body is not None:
            head.append((b"content-length", str(len(body)).encode()))
        done = asyncio.get_running_loop().create_future()
        self.waiting[stream] = [done, None, [], bytearray()]
        self.http.send_headers(stream, head, end_stream=not body)
        if body:
            self.http.send_data(stream, body, end_stream=True)
        self.transmit()
        return await done

    def quic_event_received(self, event):
        if isinstance(event, ConnectionTerminated):
            self.ended = f"{event.error_code:#x} {event.reason_phrase}"
            for stream in list(self.waiting):
                # An answer cut short was processed; RFC 9114 §5.2 says which of the others were not.
                unprocessed = self.http.goaway is not None and stream >= self.http.goaway
                self.fail(stream, (Refused if unprocessed else Broken)(f"connection ended: {self.ended}"))
        elif isinstance(event, StreamReset):
            refused = event.error_code == REQUEST_REJECTED
            self.fail(event.stream_id, (Refused if refused else Broken)(f"stream reset with {event.error_code:#x}"))
        elif isinstance(event, StopSendingReceived) and event.error_code != NO_ERROR:
            waiting = self.waiting.get(event.stream_id)
            # With an answer begun it only says that no more of the body is wanted (RFC 9114 §4.1.1).
            if waiting and waiting[1] is None and event.error_code == REQUEST_REJECTED:
                self.fail(event.stream_id, Refused("rejected"))
        for happened in self.http.handle_event(event):
            waiting = self.waiting.get(getattr(happened, "stream_id", None))
            if waiting is None:
                continue
            if isinstance(happened, HeadersReceived) and waiting[1] is None:
                status = int(dict(happened.headers)[b":status"])
                if status >= 200:
                    waiting[1] = status
                    waiting[2] = [pair for pair in happened.headers if not pair[0].startswith(b":")]
            elif isinstance(happened, DataReceived):
                waiting[3] += happened.data
            if getattr(happened, "stream_ended", False) and waiting[1] is not None:
                del self.waiting[happened.stream_id]
                if not waiting[0].done():
                    waiting[0].set_result((waiting[1], waiting[2], bytes(waiting[3])))

    def fail(self, stream, error):
        waiting = self.waiting.pop(stream, None)
        if waiting and not waiting[0].done():
            waiting[0].set_exception(error)


@asynccontextmanager
async def connect(host, port, name, ca):
    configuration = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, server_name=name, cafile=ca)
    async with quic_connect(host, port, configuration=configuration, create_protocol=Client) as client:
        yield client
