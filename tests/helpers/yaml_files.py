"""Strict reading of YAML."""

import yaml


class NoDuplicates(yaml.SafeLoader):
    """YAML in which a key may stand once only."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        assert not twice, f"{sorted(twice)} stand twice{node.start_mark}"
        return super().construct_mapping(node, deep)
