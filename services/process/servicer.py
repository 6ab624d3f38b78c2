"""ProcessService over gRPC: the same at every process but the gateway."""

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path

import grpc

from paceline.internal.v1 import process_pb2, process_pb2_grpc
from services.process.client import SERVICE
from services.process.facts import PACKAGE_VERSION, disks


class ProcessServicer(process_pb2_grpc.ProcessServiceServicer):
    """Says how this process fares."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        """`folders` are those in which it keeps something, by what that is."""
        self._folders = folders

    async def GetProcess(
        self, request: process_pb2.GetProcessRequest, context: object
    ) -> process_pb2.GetProcessResponse:
        """See process.proto."""
        found = await asyncio.to_thread(disks, self._folders)
        return process_pb2.GetProcessResponse(version=PACKAGE_VERSION, clock_seconds=time.time(), disks=found)


def add_process_service(server: grpc.aio.Server, folders: Mapping[str, Path] | None = None) -> str:
    """Has a server say how its process fares; returns the service's name."""
    process_pb2_grpc.add_ProcessServiceServicer_to_server(ProcessServicer(folders or {}), server)
    return SERVICE
