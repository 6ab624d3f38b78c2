"""What attacks are made of: every field there is, also those that are new, and the same from the same seed."""

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError

from attacks.attack import Attack, Behaviour
from attacks.extremes import extremes
from attacks.generator import Generator
from attacks.ordinary import ordinary
from attacks.targets import Target
from paceline.internal.v1 import verifier_pb2
from paceline.v1 import inference_pb2

VERIFY = Target("verifier", "paceline.internal.v1.VerifierService/Verify", verifier_pb2.VerifyRequest.DESCRIPTOR, True)
GENERATE = Target("gateway", "paceline.v1.InferenceService/Generate", inference_pb2.GenerateRequest.DESCRIPTOR, False)
IDENTITIES = {"verifier": ("proper", "nobody"), "gateway": ("proper", "two")}


def paths(message: Descriptor, before: str = "") -> set[str]:
    """Names of all fields of a message and of the messages in it."""
    found = {f"{before}{field.name}" for field in message.fields}
    inner = [field for field in message.fields if field.message_type is not None]
    return found.union(*(paths(field.message_type, f"{before}{field.name}.") for field in inner))


@pytest.mark.parametrize("target", [VERIFY, GENERATE], ids=["internal", "public"])
def test_every_field_is_brought_to_extremes(target: Target) -> None:
    reached = {extreme.path for extreme in extremes(target.request)}
    assert paths(target.request) <= reached
    assert "open.sampling.logit_bias.value" in reached or target is GENERATE


def test_fields_of_a_message_that_is_new_are_found_in_its_descriptor() -> None:
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="new.proto", package="attacks.new", syntax="proto3")
    message = file.message_type.add(name="New")
    for number, kind in enumerate(
        (kinds.TYPE_SINT64, kinds.TYPE_DOUBLE, kinds.TYPE_STRING, kinds.TYPE_BYTES, kinds.TYPE_BOOL), 1
    ):
        message.field.add(name=f"one_{number}", number=number, type=kind, label=kinds.LABEL_OPTIONAL)
        message.field.add(name=f"many_{number}", number=number + 100, type=kind, label=kinds.LABEL_REPEATED)
    message.field.add(
        name="itself", number=50, type=kinds.TYPE_MESSAGE, type_name=".attacks.new.New", label=kinds.LABEL_OPTIONAL
    )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    found = pool.FindMessageTypeByName("attacks.new.New")
    reached = {extreme.path for extreme in extremes(found)}
    assert {field.name for field in found.fields} <= reached
    assert {f"itself.itself.{field.name}" for field in found.fields} <= reached


@pytest.mark.parametrize("field", list(inference_pb2.GenerateRequest.DESCRIPTOR.fields), ids=lambda field: field.name)
def test_what_follows_a_message_changes_its_field(field: FieldDescriptor) -> None:
    """Of at least one extreme that can be read, for every field: else attacks would change nothing."""
    (plain,) = ordinary(GENERATE.method)
    before = inference_pb2.GenerateRequest.FromString(plain)
    changed = 0
    for extreme in extremes(GENERATE.request):
        if extreme.path.partition(".")[0] == field.name and not extreme.is_huge:
            try:
                changed += inference_pb2.GenerateRequest.FromString(plain + extreme.data) != before
            except DecodeError:
                continue
    assert changed > 1


def test_a_seed_and_a_number_make_the_same_attack_every_time() -> None:
    one, same, other = (Generator([VERIFY, GENERATE], IDENTITIES, seed, huge=0.0) for seed in (1, 1, 2))
    numbers = range(200)
    assert [one.attack(number) for number in numbers] == [same.attack(number) for number in reversed(numbers)][::-1]
    assert [one.attack(number) for number in numbers] != [other.attack(number) for number in numbers]


def test_an_attack_can_be_written_down_and_sent_again() -> None:
    generator = Generator([VERIFY, GENERATE], IDENTITIES, seed=3, huge=0.0)
    attacks = [generator.attack(number) for number in range(3_000)]
    assert {attack.behaviour for attack in attacks} == set(Behaviour)
    assert [Attack.of_line(attack.line()) for attack in attacks] == attacks
