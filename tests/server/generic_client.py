"""A gRPC client that knows nothing of Plaudit: lists, describes and calls what reflection says is served at ADDRESS.

Prints one JSON object: methods by service, their fields, and what came of a chat, a vote on it, and a look at health,
as far as they are served there.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase


def main(address: str) -> None:
    found: dict[str, Any] = {"services": {}, "requests": {}}
    with grpc.insecure_channel(address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        pool = DescriptorPool(database)
        for name in database.get_services():
            service = pool.FindServiceByName(name)
            found["services"][name] = sorted(method.name for method in service.methods)
            for method in service.methods:
                found["requests"][method.full_name] = [field.name for field in method.input_type.fields]

        def call(service: str, method: str, request: dict[str, Any]) -> list[dict[str, Any]]:
            described = pool.FindServiceByName(service).methods_by_name[method]
            asked = ParseDict(request, GetMessageClass(described.input_type)())
            answer = GetMessageClass(described.output_type)
            calls = channel.unary_stream(  # what answers once is a stream of one
                f"/{service}/{method}",
                request_serializer=type(asked).SerializeToString,
                response_deserializer=answer.FromString,
            )
            return [MessageToDict(each, preserving_proto_field_name=True) for each in calls(asked, timeout=60)]

        if "plaudit.v1.ChatService" in found["services"]:
            chat = {"messages": [{"role": "ROLE_USER", "content": "hello"}], "sampling": {"max_tokens": 4}}
            found["chat"] = call("plaudit.v1.ChatService", "StreamChat", chat)
            vote = {"receipt": found["chat"][0]["started"]["receipt"], "thumb": "THUMB_UP"}
            found["vote"] = call("plaudit.v1.FeedbackService", "SubmitFeedback", vote)
        if "plaudit.v1.PolicyService" in found["services"]:
            found["policies"] = call("plaudit.v1.PolicyService", "ListPolicies", {})
        found["health"] = call("grpc.health.v1.Health", "Check", {})
    assert not [module for module in sys.modules if module.startswith("plaudit")]
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
