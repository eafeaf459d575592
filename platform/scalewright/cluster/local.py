"""A Ray cluster on this machine for the length of one run: it ends when stdin does.

    python -m scalewright.cluster.local [CPUS]

Prints its address. Apart from the attempts, so that one follows the other on the same cluster.
"""

import sys

import ray

from scalewright.cluster.launch import connect


def main() -> None:
    connect(num_cpus=int(sys.argv[1]) if len(sys.argv) > 1 else None)
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
    ray.shutdown()


if __name__ == "__main__":
    main()
