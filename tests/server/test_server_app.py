"""The program: reflection, health, settings, and its real command line."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from urllib.request import urlopen

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from bench.deployment import free_range
from plaudit_client import InvalidRequest
from tests.fixtures_server import Deployment


async def command(*arguments: str) -> tuple[int, str]:
    """(exit status, what it wrote) of a program run to its end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_a_client_that_knows_only_reflection_finds_services_and_comments(address: str, control: str) -> None:
    def look(where: str, symbol: str) -> tuple[set[str], FileDescriptorProto]:
        with grpc.insecure_channel(where) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            return set(database.get_services()), database.FindFileContainingSymbol(symbol)

    everywhere = {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    services, _ = await asyncio.to_thread(look, control, "plaudit.v1.PolicyService")
    assert services == everywhere | {f"plaudit.v1.{name}Service" for name in ("Loop", "Policy", "Privacy")}
    services, file = await asyncio.to_thread(look, address, "plaudit.v1.ChatService")
    assert services == everywhere | {"plaudit.v1.ChatService", "plaudit.v1.FeedbackService"}
    assert [method.name for method in file.service[0].method] == ["StreamChat"]


async def test_metrics_are_there_from_the_start(deployment: Deployment) -> None:
    port = free_range(1)
    async with deployment.client(metrics_port=port) as client:
        reply = client.chat("hello", max_tokens=5)
        await reply.read()
        await reply.thumbs_down()
        with pytest.raises(InvalidRequest):
            await client.submit_feedback("no receipt", thumb="up")

        def scrape() -> str:
            with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                text: str = answer.read().decode()
                return text

        text = await asyncio.to_thread(scrape)
    assert 'plaudit_time_to_first_token_seconds_count{policy_version="v0"} 1.0' in text
    assert 'plaudit_feedback_total{aspect="quality",policy_version="v0",verdict="down"} 1.0' in text
    assert 'plaudit_version_served{policy_version="v0"} 1.0' in text
    assert "plaudit_requests_running 0.0" in text
    assert "plaudit_requests_waiting 0.0" in text
    assert "plaudit_request_queue_time_seconds_count 1.0" in text
    assert 'plaudit_grpc_handled_total{code="OK",method="ChatService/StreamChat"} 1.0' in text
    assert 'plaudit_grpc_handled_total{code="OK",method="FeedbackService/SubmitFeedback"} 1.0' in text
    assert 'plaudit_feedback_statements_total{outcome="invalid"} 1.0' in text
    assert "plaudit_feedback_acknowledgement_seconds_count 1.0" in text
    assert 'plaudit_build_info{engine="torch",model="tiny-model' in text
    assert "process_resident_memory_bytes" in text


async def test_two_servers_cannot_listen_at_one_port(deployment: Deployment) -> None:
    async with deployment.server("server-0") as address:
        with pytest.raises(OSError, match=f"cannot listen at {address}"):
            async with deployment.server("server-1", listen=address):
                pass


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--max-running=0"], "--max-running: Input should be greater than or equal to 1 (got '0')"),
        (["--engine=tpu"], "--engine: Input should be 'auto', 'vllm' or 'torch' (got 'tpu')"),
        (["--default-max-tokens=600"], "default-max-tokens (600) must not exceed max-tokens (512)"),
        (["--nonsense=1"], "nonsense"),
        ([], "--event-log: Field required"),
    ],
)
async def test_wrong_settings_end_in_one_line_each(tmp_path: Path, flags: list[str], words: str) -> None:
    keys = [f"--receipt-keys={tmp_path / 'key'}", f"--user-key-file={tmp_path / 'key'}"]
    needed = [f"--event-log=sqlite:{tmp_path / 'e'}", f"--policy-store={tmp_path}", f"--state-dir={tmp_path}"]
    status, output = await command("plaudit_server.app", *(needed if flags else []), *keys, *flags)
    assert status == 2
    assert words in output
    assert "Traceback" not in output


async def test_what_cannot_start_says_why(tmp_path: Path, tiny_model: Path) -> None:
    common = [f"--policy-store={tmp_path / 'v'}", f"--state-dir={tmp_path}"]
    common += [f"--receipt-keys={tmp_path / 'key'}", f"--user-key-file={tmp_path / 'key'}"]
    log = f"--event-log=sqlite:{tmp_path / 'e'}"
    status, output = await command("plaudit_server.app", *common, log, f"--model={tiny_model}")
    assert (status, "key" in output, "Traceback" in output) == (1, True, False)
    (tmp_path / "key").write_bytes(b"short")
    status, output = await command("plaudit_server.app", *common, log, f"--model={tiny_model}")
    assert (status, "needs at least 32" in output, "Traceback" in output) == (1, True, False)
    (tmp_path / "key").write_bytes(b"k" * 32)
    status, output = await command("plaudit_server.app", *common, log, "--model=/nowhere")
    assert (status, "give 'smollm2', or a directory" in output) == (1, True)
    status, output = await command("plaudit_server.app", *common, "--event-log=ftp://x", f"--model={tiny_model}")
    assert (status, "give sqlite:PATH or kafka://" in output) == (1, True)


@pytest.mark.parametrize("program", ["plaudit_server.app", "plaudit_learner.app"])
async def test_help_answers_without_loading_anything_heavy(program: str) -> None:
    status, output = await command(program, "--help")
    assert status == 0
    assert "--event-log" in output
    heavy = f"import sys, {program}; sys.exit(any(name in sys.modules for name in ('torch', 'vllm', 'transformers')))"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", heavy)
    assert await process.wait() == 0
