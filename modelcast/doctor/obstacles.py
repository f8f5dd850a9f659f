"""What each obstacle on the way to a broker means: one table, from where a call ended to what is said of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from .contact import Contact, Obstacle
from .findings import Finding, fault
from .mending import day, tool
from .sights import Question


@dataclass(frozen=True, slots=True)
class Meaning:
    """What to say: `{names}` are filled in by `explain`."""

    check: str
    message: str
    mend: str


_MEANINGS: Final[Mapping[Obstacle, Meaning]] = {
    Obstacle.UNKNOWN_HOST: Meaning(
        "broker", "the host of {at} is not known ({said})", "Mend the name in bootstrap.servers, or this host's DNS."
    ),
    Obstacle.REFUSED: Meaning(
        "broker",
        "nothing listens at {at} ({said})",
        "Start the broker (a local one: modelcast dev up), or name the right one: -b HOST:PORT",
    ),
    Obstacle.SILENT: Meaning(
        "broker",
        "{at} does not answer ({said})",
        "Let firewalls pass that port, or name the right host: -b HOST:PORT. A broker that hangs wants a restart.",
    ),
    Obstacle.NOT_KAFKA: Meaning(
        "broker", "what listens at {at} is no Kafka broker ({said})", "Name a broker's port: -b HOST:9092"
    ),
    Obstacle.SPEAKS_TLS: Meaning(
        "tls",
        "{at} speaks TLS, and security.protocol is {protocol}",
        "-X security.protocol={with_tls} (SASL_SSL where it asks for a login)",
    ),
    Obstacle.SPEAKS_PLAIN: Meaning(
        "tls",
        "{at} does not speak TLS, and security.protocol is {protocol}",
        "Name the port of its TLS listener: -b HOST:PORT, or, where the network is trusted: "
        "-X security.protocol={without_tls}",
    ),
    Obstacle.HANDSHAKE: Meaning(
        "tls",
        "the TLS handshake with {at} fails ({said})",
        "Compare ssl.enabled.protocols and ssl.cipher.suites of its listener with this host's OpenSSL.",
    ),
    Obstacle.PROPERTIES: Meaning("properties", "{said}", "Mend that file, or the property that names it (-X, -F)."),
    Obstacle.EXPIRED: Meaning(
        "certificate",
        "the certificate of {at}, or of an authority above it, has expired{until}",
        "Renew it: ssl.keystore.location of that broker's listener. See all of them with: "
        "openssl s_client -connect {at} -showcerts",
    ),
    Obstacle.NOT_YET_VALID: Meaning(
        "certificate",
        "the certificate of {at} is not valid yet{since}: this host's clock, or the issuer's, is wrong",
        "Set this host's clock: timedatectl set-ntp true",
    ),
    Obstacle.UNTRUSTED: Meaning(
        "certificate",
        "the certificate of {at} is signed by no authority that is trusted here ({said})",
        "-X ssl.ca.location=FILE with the certificate of the authority that signed it, PEM",
    ),
    Obstacle.WRONG_HOST: Meaning(
        "certificate",
        "the certificate of {at} is for another host ({said})",
        "Name the broker as its certificate does: -b NAME:PORT, or have it name this one too (subjectAltName).",
    ),
    Obstacle.OUR_CERTIFICATE: Meaning(
        "certificate",
        "{at} does not take our certificate {certificate} ({said})",
        "Have one issued by an authority of that broker's ssl.truststore.location, and set "
        "-X ssl.certificate.location=FILE -X ssl.key.location=FILE, PEM",
    ),
    Obstacle.WANTS_LOGIN: Meaning(
        "login",
        "{at} asks for a login, and security.protocol is {protocol}",
        "-X security.protocol={with_login} -X sasl.mechanism=… -X sasl.username=… -X sasl.password=…",
    ),
    Obstacle.WANTS_NO_LOGIN: Meaning(
        "login",
        "{at} takes no login, and security.protocol is {protocol}",
        "Name the port of a SASL listener: -b HOST:PORT, or: -X security.protocol={without_login}",
    ),
    Obstacle.MECHANISM: Meaning(
        "login",
        "{at} does not take sasl.mechanism={mechanism}: it offers {offered}",
        "-X sasl.mechanism={first_offered}",
    ),
    Obstacle.PASSWORD: Meaning(
        "login",
        "{at} refuses user {user!r} or the password ({said})",
        "Set sasl.username and sasl.password to what the broker knows.{known_users}",
    ),
}
_NO_CERTIFICATE: Final = Meaning(
    "certificate",
    "{at} asks for a certificate of ours ({said})",
    "-X ssl.certificate.location=FILE -X ssl.key.location=FILE, PEM",
)


def explain(question: Question, contact: Contact) -> Finding:
    """The fault that a call's end is. Raises ValueError if nothing stood in its way."""
    if contact.obstacle is None:
        raise ValueError(f"{contact.address} was reached")
    security, validity = question.security, contact.certificate
    meaning = _MEANINGS[contact.obstacle]
    if contact.obstacle is Obstacle.OUR_CERTIFICATE and not security.certificate and not security.keystore:
        meaning = _NO_CERTIFICATE
    users = ("kafka-configs.sh", "--describe", "--entity-type", "users", "--entity-name", security.user)
    is_scram = security.mechanism.startswith("SCRAM")
    words = {
        "at": contact.address,
        "said": contact.said or "no reason given",
        "protocol": security.protocol,
        "with_tls": "SASL_SSL" if security.uses_sasl else "SSL",
        "without_tls": "SASL_PLAINTEXT" if security.uses_sasl else "PLAINTEXT",
        "with_login": "SASL_SSL" if security.uses_tls else "SASL_PLAINTEXT",
        "without_login": "SSL" if security.uses_tls else "PLAINTEXT",
        "until": "" if validity is None else f" ({day(validity.until_ms)})",
        "since": "" if validity is None else f" (from {day(validity.from_ms)})",
        "certificate": security.certificate or "in the keystore",
        "mechanism": security.mechanism or "GSSAPI",
        "offered": ", ".join(contact.mechanisms) or "none",
        "first_offered": contact.mechanisms[0] if contact.mechanisms else "…",
        "user": security.user,
        "known_users": f" Whether it is known: {tool(question, *users)}" if is_scram else "",
    }
    return fault(meaning.check, meaning.message.format(**words), meaning.mend.format(**words))
