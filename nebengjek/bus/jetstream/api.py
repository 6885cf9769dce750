"""Streams, consumers and stored messages by JetStream's JSON API: one request each, on ``$JS.API`` or a domain's."""

import secrets
from datetime import datetime
from typing import Any

import msgspec

from nebengjek.bus.checks import check_consumer, check_consumer_change, check_stream, check_stream_change
from nebengjek.bus.errors import NoResponders
from nebengjek.bus.interface import Account
from nebengjek.bus.jetstream.core import NatsCore
from nebengjek.bus.jetstream.wire import (
    Json,
    account,
    check_response,
    consumer_config,
    consumer_info,
    stored_message,
    stream_config,
    stream_info,
    stream_spec,
)
from nebengjek.bus.messages import StoredMessage
from nebengjek.bus.specs import ConsumerInfo, ConsumerSpec, StreamInfo, StreamSpec
from nebengjek.bus.subjects import check_name
from nebengjek.bus.times import rfc3339


class JetStreamApi(NatsCore):
    """The part of the broker that manages what the server keeps."""

    async def account(self) -> Account:
        try:
            return account(await self._call("INFO"))
        except NoResponders as error:
            raise NoResponders("bus", f"no JetStream answers at {self.where} under {self._api}") from error

    async def _call(self, verb: str, body: Json | None = None) -> Json:
        data = msgspec.json.encode(body) if body is not None else b""
        reply = await self.ask(f"{self._api}.{verb}", data, None, self._request_timeout)
        return check_response(msgspec.json.decode(reply.data, type=dict[str, Any]))

    async def _list(self, verb: str, key: str) -> list[Json]:
        found: list[Json] = []
        while True:
            page = await self._call(verb, {"offset": len(found)})
            found += page.get(key) or []
            if not page.get(key) or len(found) >= page["total"]:
                return found

    # -- streams

    async def create_stream(self, spec: StreamSpec) -> StreamInfo:
        spec = check_stream(spec)
        return stream_info(await self._call(f"STREAM.CREATE.{spec.name}", stream_config(spec)))

    async def update_stream(self, spec: StreamSpec) -> StreamInfo:
        spec = check_stream(spec)
        present = await self._call(f"STREAM.INFO.{spec.name}")
        check_stream_change(stream_spec(present["config"]), spec)
        return stream_info(await self._call(f"STREAM.UPDATE.{spec.name}", stream_config(spec)))

    async def stream_info(self, name: str) -> StreamInfo:
        return stream_info(await self._call(f"STREAM.INFO.{check_name(name)}"))

    async def streams(self) -> list[StreamInfo]:
        return [stream_info(one) for one in await self._list("STREAM.LIST", "streams")]

    async def delete_stream(self, name: str) -> None:
        await self._call(f"STREAM.DELETE.{check_name(name)}")

    async def purge_stream(
        self, name: str, *, subject: str | None = None, keep: int | None = None, up_to: int | None = None
    ) -> int:
        body = {"filter": subject, "keep": keep, "seq": up_to}
        request = {key: value for key, value in body.items() if value is not None}
        response = await self._call(f"STREAM.PURGE.{check_name(name)}", request)
        return int(response["purged"])

    async def get_message(
        self, stream: str, seq: int | None = None, *, last_by_subject: str | None = None
    ) -> StoredMessage:
        which: Json = {"seq": seq or 0} if last_by_subject is None else {"last_by_subj": last_by_subject}
        response = await self._call(f"STREAM.MSG.GET.{check_name(stream)}", which)
        return stored_message(stream, response["message"])

    async def delete_message(self, stream: str, seq: int) -> None:
        await self._call(f"STREAM.MSG.DELETE.{check_name(stream)}", {"seq": seq, "no_erase": True})

    # -- consumers

    async def create_consumer(self, stream: str, spec: ConsumerSpec) -> ConsumerInfo:
        return await self._put_consumer(check_name(stream), check_consumer(spec), "create")

    async def update_consumer(self, stream: str, spec: ConsumerSpec) -> ConsumerInfo:
        check_name(stream)
        spec = check_consumer(spec)
        if spec.name is not None:
            present = await self._find_consumer(stream, spec.name)
            if present is not None:
                check_consumer_change(present.spec, spec)
        return await self._put_consumer(stream, spec, "update")

    async def _find_consumer(self, stream: str, name: str) -> ConsumerInfo | None:
        return next((info for info in await self.consumers(stream) if info.name == name), None)

    async def _put_consumer(self, stream: str, spec: ConsumerSpec, action: str) -> ConsumerInfo:
        config = consumer_config(spec)
        # Name and filter are said in the subject too, an ephemeral's as well: permissions can tell one from another.
        name = config.setdefault("name", secrets.token_hex(6))
        filters = f".{spec.filters[0]}" if len(spec.filters) == 1 else ""
        body = {"stream_name": stream, "config": config, "action": action}
        return consumer_info(await self._call(f"CONSUMER.CREATE.{stream}.{name}{filters}", body))

    async def consumer_info(self, stream: str, name: str) -> ConsumerInfo:
        return consumer_info(await self._call(f"CONSUMER.INFO.{check_name(stream)}.{check_name(name)}"))

    async def consumers(self, stream: str) -> list[ConsumerInfo]:
        return [consumer_info(one) for one in await self._list(f"CONSUMER.LIST.{check_name(stream)}", "consumers")]

    async def delete_consumer(self, stream: str, name: str) -> None:
        await self._call(f"CONSUMER.DELETE.{check_name(stream)}.{check_name(name)}")

    async def pause_consumer(self, stream: str, name: str, until: datetime | None) -> None:
        body: Json = {"pause_until": rfc3339(until)} if until is not None else {}
        await self._call(f"CONSUMER.PAUSE.{check_name(stream)}.{check_name(name)}", body)
