import pytest
from tiny_hf import write_bert, write_completions, write_gpt2, write_intents, write_llama, write_spec


@pytest.fixture(scope="session")
def spec(tmp_path_factory):
    return write_spec(tmp_path_factory.mktemp("spec"))


@pytest.fixture(scope="session")
def intents(tmp_path_factory):
    return str(write_intents(tmp_path_factory.mktemp("intents")))


@pytest.fixture(scope="session")
def completions(tmp_path_factory):
    return str(write_completions(tmp_path_factory.mktemp("completions")))


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory):
    return write_gpt2(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("llama"))
