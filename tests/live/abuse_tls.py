"""Abuse of TLS, mostly as sslyze tries it."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from sslyze.plugins.scan_commands import ScanCommand
from sslyze.scanner.models import ServerScanRequest
from sslyze.scanner.scanner import Scanner
from sslyze.server_setting import ServerNetworkConfiguration, ServerNetworkLocation

from tests.live.abuse_http1 import PATIENCE_S, STATUS
from tests.live.site import Site

# The intermediate guideline: with TLS 1.2 these, with 1.3 all that there are.
SUITES = {
    f"TLS_ECDHE_{key}_WITH_{cipher}"
    for key in ("ECDSA", "RSA")
    for cipher in ("AES_128_GCM_SHA256", "AES_256_GCM_SHA384", "CHACHA20_POLY1305_SHA256")
}
OLD = {
    "SSL 2.0": ScanCommand.SSL_2_0_CIPHER_SUITES,
    "SSL 3.0": ScanCommand.SSL_3_0_CIPHER_SUITES,
    "TLS 1.0": ScanCommand.TLS_1_0_CIPHER_SUITES,
    "TLS 1.1": ScanCommand.TLS_1_1_CIPHER_SUITES,
}
BUGS: dict[str, tuple[ScanCommand, str]] = {
    "renegotiation by the client": (
        ScanCommand.SESSION_RENEGOTIATION,
        "is_vulnerable_to_client_renegotiation_dos",
    ),
    "compression in TLS": (ScanCommand.TLS_COMPRESSION, "supports_compression"),
    "a request in TLS 1.3's first flight": (
        ScanCommand.TLS_1_3_EARLY_DATA,
        "supports_early_data",
    ),
    "Heartbleed": (ScanCommand.HEARTBLEED, "is_vulnerable_to_heartbleed"),
    "CCS injection": (ScanCommand.OPENSSL_CCS_INJECTION, "is_vulnerable_to_ccs_injection"),
}
SCANS = {
    *OLD.values(),
    *(command for command, _ in BUGS.values()),
    ScanCommand.TLS_1_2_CIPHER_SUITES,
    ScanCommand.TLS_1_3_CIPHER_SUITES,
    ScanCommand.TLS_FALLBACK_SCSV,
}


def scan(site: Site) -> dict[str, str]:
    """What sslyze finds; a weakness is named."""
    location = ServerNetworkLocation(site.domain, ip_address=site.address)
    request = ServerScanRequest(
        server_location=location,
        network_configuration=ServerNetworkConfiguration(
            site.domain, network_timeout=PATIENCE_S, network_max_retries=2
        ),
        scan_commands=SCANS,
    )
    scanner = Scanner(per_server_concurrent_connections_limit=5)
    scanner.queue_scans([request])
    (result,) = scanner.get_results()
    assert result.scan_result is not None, result.connectivity_error_trace

    results = result.scan_result

    def found(command: ScanCommand) -> Any:
        attempt = getattr(results, command.value)
        assert attempt.result is not None, attempt.error_trace
        return attempt.result

    def suites(command: ScanCommand) -> set[str]:
        return {one.cipher_suite.name for one in found(command).accepted_cipher_suites}

    outcomes = {
        name: ", ".join(sorted(suites(command))) or "refused" for name, command in OLD.items()
    }
    weak = suites(ScanCommand.TLS_1_2_CIPHER_SUITES) - SUITES
    outcomes["a weak suite in TLS 1.2"] = ", ".join(sorted(weak)) or "refused"
    for name, (command, weakness) in BUGS.items():
        outcomes[name] = "possible" if getattr(found(command), weakness) else "refused"
    assert len(suites(ScanCommand.TLS_1_2_CIPHER_SUITES)) >= 3, "TLS 1.2 is not served as it is to"
    assert len(suites(ScanCommand.TLS_1_3_CIPHER_SUITES)) == 3, "TLS 1.3 is not served as it is to"
    assert found(ScanCommand.TLS_FALLBACK_SCSV).supports_fallback_scsv
    return outcomes


def told(site: Site, source: str, sent: bytes) -> str:
    """What comes of bytes that are no TLS."""
    received = b""
    with site.plain(source=source, timeout=PATIENCE_S) as plain:
        with suppress(OSError):
            plain.sendall(sent)
        try:
            while part := plain.recv(1 << 16):
                received += part
        except TimeoutError:
            return "held"
        except OSError:
            pass
    statuses = [status.decode() for status in STATUS.findall(received)]
    return " then ".join(statuses) or "refused"


def hello(length: int) -> bytes:
    """A record that says that it begins a handshake of some length."""
    return b"\x16\x03\x01" + length.to_bytes(2) + b"\x01" + (length - 4).to_bytes(3)


def attack(site: Site, sources: list[str]) -> dict[str, str]:
    """Try everything."""
    tries: dict[str, bytes] = {
        "noise instead of TLS": bytes(range(256)) * 40,
        "random bytes after a handshake's beginning": hello(512) + os.urandom(508),
        "a handshake that is announced and does not come": hello(16_000),
        "a record longer than records are": b"\x16\x03\x01\xff\xff" + os.urandom(65_535),
        "an alert instead of a handshake": b"\x15\x03\x01\x00\x02\x02\x28" * 100,
        "HTTP without TLS on port 443": f"GET / HTTP/1.1\r\nHost: {site.domain}\r\n\r\n".encode(),
    }
    jobs: dict[str, Callable[[], str]] = {
        # A default binds the name now; mypy cannot infer such a lambda.
        name: lambda sent=sent: told(site, sources[0], sent)  # type: ignore[misc]
        for name, sent in tries.items()
    }
    with ThreadPoolExecutor() as pool:
        scanned = pool.submit(scan, site)
        futures = {name: pool.submit(job) for name, job in jobs.items()}
        outcomes = {name: future.result() for name, future in futures.items()}
    return scanned.result() | outcomes
