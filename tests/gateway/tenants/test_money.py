"""Money is said in one way wherever the public API says any."""

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from paceline.v1 import admin_pb2, batch_pb2, inference_pb2, model_pb2, usage_pb2, webhook_pb2

_FILES = (admin_pb2, batch_pb2, inference_pb2, model_pb2, usage_pb2, webhook_pb2)
_OF_MONEY = ("cost", "price", "budget", "amount", "spent", "nanos", "money")
_CURRENCIES = {"paceline.v1.Prices", "paceline.v1.BatchEstimate", "paceline.v1.GetUsageResponse"}


def _messages() -> list[Descriptor]:
    return [message for file in _FILES for message in file.DESCRIPTOR.message_types_by_name.values()]


def test_amounts_are_whole_billionths() -> None:
    amounts = [
        field
        for message in _messages()
        for field in message.fields
        if any(word in field.name for word in _OF_MONEY) and field.type != FieldDescriptor.TYPE_MESSAGE
    ]
    assert len(amounts) >= 8
    for field in amounts:
        assert field.type == FieldDescriptor.TYPE_UINT64, field.full_name
        assert field.name.endswith("_nanos"), field.full_name


def test_a_currency_is_a_text_of_that_name() -> None:
    found = {message.full_name for message in _messages() if "currency" in message.fields_by_name}
    assert found == _CURRENCIES
    for message in _messages():
        if field := message.fields_by_name.get("currency"):
            assert field.type == FieldDescriptor.TYPE_STRING
