"""A writer of TensorFlow's checkpoints and slow twins of the release's networks, written from the formats' descriptions alone.

Numbers are float64, pictures are channels last: (N, H, W, C). A network is a list of (kernel, bias).
"""

import numpy as np

MAGIC = 0xDB4775248B80FB57


def crc32c(data):
    """A byte at a time, by the definition (RFC 3720): polynomial 0x1EDC6F41, its bits in reverse order."""
    register = 0xFFFFFFFF
    for byte in data:
        register = register >> 8 ^ TABLE[(register ^ byte) & 0xFF]
    return register ^ 0xFFFFFFFF


def _shifted(value):
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


TABLE = [_shifted(value) for value in range(256)]


def masked(data):
    found = crc32c(data)
    return (((found >> 15) | (found << 17)) + 0xA282EAD8 & 0xFFFFFFFF).to_bytes(4, "little")


def varint(value):
    found = b""
    while value > 127:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + bytes([value])


def field(number, value):
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value)


def block(pairs, compression=0):
    """Names share what they can with the one before; one restart point."""
    content, before = b"", b""
    for name, value in pairs:
        shared = 0
        while shared < min(len(before), len(name)) and before[shared] == name[shared]:
            shared += 1
        content += varint(shared) + varint(len(name) - shared) + varint(len(value)) + name[shared:] + value
        before = name
    content += bytes(4) + (1).to_bytes(4, "little")
    kind = bytes([compression])
    return content + kind + masked(content + kind)


def table(pairs, size=4, compression=0, repeat=1):
    """`size` names a block. repeat: how often the first block is listed."""
    content, handles = b"", []
    for i in range(0, len(pairs), size):
        part = block(pairs[i : i + size], compression)
        handles.append((pairs[min(i + size, len(pairs)) - 1][0], varint(len(content)) + varint(len(part) - 5)))
        content += part
    ends = []
    for part in (block([]), block(handles[:1] * (repeat - 1) + handles)):  # filters, of which there are none, and blocks
        ends.append(varint(len(content)) + varint(len(part) - 5))
        content += part
    return content + b"".join(ends).ljust(40, b"\0") + MAGIC.to_bytes(8, "little")


def entry(kind, shape, start, data, checksum=None, **more):
    """A BundleEntryProto; more: fields of other numbers, as f3=1."""
    sizes = b"".join(field(2, field(1, size)) for size in shape)
    message = field(1, kind) + field(2, sizes) + field(4, start) + field(5, len(data))
    message += varint(6 << 3 | 5) + (checksum or masked(data))
    return message + b"".join(field(int(name[1:]), value) for name, value in more.items())


def graph(networks):
    """A TrackableObjectGraph, and the values' names in the index with their arrays."""
    nodes, values = [[]], {}

    def add(parent, name):
        nodes[parent].append(field(1, field(1, len(nodes)) + field(2, name.encode())))
        nodes.append([])
        return len(nodes) - 1

    for attribute, layers in networks.items():
        top = add(0, attribute) if attribute else 0
        for i, layer in enumerate(layers):
            place = add(top, f"layer_with_weights-{i}")
            for part, value in zip(("kernel", "bias"), layer, strict=True):
                name = f"{attribute}/layer_with_weights-{i}/{part}/.ATTRIBUTES/VARIABLE_VALUE".lstrip("/")
                nodes[add(place, part)].append(field(2, field(1, b"VARIABLE_VALUE") + field(3, name.encode())))
                values[name.encode()] = np.asarray(value, "<f4")
    return b"".join(field(1, b"".join(node)) for node in nodes), values


ONE_FILE = field(1, 1)  # the header of the index


def write(prefix, networks, change=lambda entries: entries, header=ONE_FILE, **how):
    """networks: attribute of the saved object -> layers. change: of the list of entries, before it is written."""
    text, values = graph(networks)
    length = len(text).to_bytes(4, "little")
    pieces = {b"_CHECKPOINTABLE_OBJECT_GRAPH": varint(len(text)) + masked(length) + text}
    pieces |= {name: value.tobytes() for name, value in values.items()}
    data, entries = b"", [(b"", header)]
    for name, piece in sorted(pieces.items()):
        value = values.get(name)
        summed = masked(length + masked(length) + text) if value is None else None
        entries.append((name, entry(7 if value is None else 1, () if value is None else value.shape, len(data), piece, summed)))
        data += piece
    prefix.parent.mkdir(parents=True, exist_ok=True)
    prefix.with_name(prefix.name + ".index").write_bytes(table(change(entries), **how))
    prefix.with_name(prefix.name + ".data-00000-of-00001").write_bytes(data)
    return prefix


# --- the networks, as Keras computes them ----------------------------------------------------------------------------


def relu(x):
    return np.maximum(x, 0)


def dense(x, layer):
    return x @ layer[0] + layer[1]


def conv(x, layer):
    kernel, bias = layer
    side = x.shape[1]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return bias + sum(padded[:, i : i + side, j : j + side] @ kernel[i, j] for i in range(3) for j in range(3))


def pool(x):
    n, side, _, channels = x.shape
    return x.reshape(n, side // 2, 2, side // 2, 2, channels).max((2, 4))


def up(x, times):
    return x.repeat(times, 1).repeat(times, 2)


def classifier(layers, image):
    *convs, hidden, last = layers
    x = image
    for layer in convs:
        x = pool(relu(conv(x, layer)))
    return dense(relu(dense(x.reshape(len(x), -1), hidden)), last)


def predmi(layers, prediction):
    first, *convs, last = layers
    x = up(relu(dense(prediction, first))[:, None, None], 4)
    for layer in convs:
        x = up(relu(conv(x, layer)), 2)
    return conv(x, last)


def expmi(layers, explanation, prediction):
    x, skips, layers = explanation, [], list(layers)
    while x.shape[1] > 2:
        skips.append(relu(conv(x, layers.pop(0))))
        x = pool(skips[-1])
    code = relu(dense(x.reshape(len(x), -1), layers.pop(0)))
    together = np.concatenate([code, explanation.reshape(len(x), -1), prediction], 1)
    x = up(relu(dense(together, layers.pop(0)))[:, None, None], 4)
    while layers:
        x = np.concatenate([x, skips.pop()], 3) if skips else x
        x = conv(x, layers.pop(0))
        x = up(relu(x), 2) if layers else x
    return x


def injector(layers, explanation, prediction, mean, std):
    return (expmi(layers, (explanation - mean) / std, prediction) * std + mean).clip(0, 1)
