"""Whether two models know each other's tokens: a digest over what each id of a tokenizer stands for."""

from blake3 import blake3
from transformers import AutoTokenizer

from services.common.checkpoint import check_tokenizer


def vocabulary_digest(source: str, *, trust_remote_code: bool = False) -> str:
    """BLAKE3 (hexadecimal) over the tokens of a folder's or hub id's tokenizer, in order of their ids; empty for none.

    Ids that only a model has, to pad its matrices, are not among them.
    """
    try:
        check_tokenizer(source)
        vocabulary = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code).get_vocab()
    except Exception:  # Where there is no tokenizer, or one that cannot be read, nothing is said of it.
        return ""
    hasher = blake3()
    for token, token_id in sorted(vocabulary.items(), key=lambda item: item[1]):
        hasher.update(f"{token_id}:{len(token)}:{token};".encode(errors="surrogatepass"))
    return hasher.hexdigest()
