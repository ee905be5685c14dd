"""`octograin serve RUN`: serves a policy over a websocket, for openpi's clients and vla-eval."""

import asyncio
import dataclasses
import json
import logging
import os
import signal
import socket
import sys
from typing import Annotated, Any, NoReturn

import tyro
from rich.console import Console
from rich.table import Table

from pipeline.errors import EXIT_INTERRUPTED, UserError, user_errors_exit
from pipeline.flag_help import PartsFlag, joined_help
from pipeline.loading.transforms.gripper_rules import GripperHysteresis
from pipeline.parts.part_files import load_parts
from pipeline.terminal import log_to_stderr, program
from train.checkpoints.checkpoint_store import Checkpoint
from train.policy.observations import describe_one
from train.policy.policy import Policy, PolicyConfig, read_run
from train.policy.rollout_tokens import encoder_of, shown_observations
from train.serve.api_key import VARIABLE, read_api_key
from train.serve.client_session import ProtocolName, ServeConfig, expected_keys
from train.serve.in_thread import import_server
from train.serve.listener import bind, is_local

_log = logging.getLogger("train.serve")
_NUM_CALLS = 200
"""Calls that `--benchmark` measures by default."""
_DIGITS = 3


def _parse_num_calls(words: list[str]) -> int:
    if not words:
        return _NUM_CALLS
    # "a number": tyro puts the flag before it.
    if not words[0].isascii() or not words[0].isdecimal() or not int(words[0]):
        raise ValueError(f"expected a number of calls, from 1; found {words[0]}")
    return int(words[0])


_NumCalls = tyro.constructors.PrimitiveConstructorSpec(
    nargs=(0, 1),
    metavar="[N]",
    instance_from_str=_parse_num_calls,
    is_instance=lambda value: isinstance(value, int),
    str_from_instance=lambda value: [str(value)],
)


@dataclasses.dataclass(frozen=True)
class Args:
    """Serves the policy of a run to openpi's clients, or to the benchmarks of vla-eval."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory, or hf://owner/name[@revision] for a policy on the hub."""
    protocol: ProtocolName = "openpi"
    """Messages of the clients: openpi: openpi's websocket clients; vla-eval: the benchmarks of
    allenai's vla-eval, which get one action per observation."""
    host: str = "127.0.0.1"
    """Address to listen at. The default serves only this machine; 0.0.0.0 serves every machine that
    can reach this one."""
    port: int = 8000
    """Port; 0: any free port, which is printed."""
    api_key_file: Annotated[str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """File with a key that clients must send, as openpi's WebsocketClientPolicy does with its
    api_key; by default, the environment variable OCTOGRAIN_API_KEY, and without it none."""
    step: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Training step of the checkpoint; the last one by default."""
    dataset: Annotated[str | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")] = None
    """Dataset whose statistics and conventions are used, by path or name; required if the run was
    trained on several that differ."""
    execute_horizon: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Reply with one action per message, and predict a new chunk every N; by default, reply with
    chunks to openpi's clients, and execute whole chunks for vla-eval."""
    ensemble: Annotated[float | None, tyro.conf.arg(metavar="M", help_behavior_hint="")] = None
    """Reply with one action per message: the mean of all chunks, with weights exp(-M i), where i =
    0 is the oldest."""
    delay: Annotated[int, tyro.conf.arg(metavar="D")] = 0
    """With --execute_horizon, reply at once while the next chunk is predicted, which takes effect
    D steps after its observation and continues the last one. A reply waits only for a prediction
    that is late."""
    real_time_chunking: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Reply with chunks that continue the last one, to clients that execute it while they wait: a
    message has the numbers of its executed actions, and of those until the reply (delay)."""
    resize: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Resize images to the stored size; by default, other sizes are refused."""
    keys: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=NAME ...")] = ()
    """Keys of a message and the observation that each holds, such as
    observation/front=image_primary, instead of the protocol's own keys for these observations. For
    vla-eval, the name of a camera or of another entry: primary=image_primary."""
    weights: Annotated[str | None, tyro.conf.arg(metavar="SOURCE", help_behavior_hint="")] = None
    """Where the weights of the token encoder are now; by default, where they were for the
    dataset."""
    seed: int = 0
    """Seed of a diffusion head's noise."""
    benchmark: Annotated[int | None, _NumCalls, tyro.conf.arg(help_behavior_hint="")] = None
    """Measure N calls, 200 by default, of a client on this machine instead of serving: latency from
    packing a message to its actions, on a free port."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """With --benchmark, print one JSON object on a line of its own; the table goes to stderr."""
    parts: PartsFlag = ()
    """Python file, or module, that defines classes of your own which the run records; may be given
    several times."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show a traceback with an error."""


def main() -> None:
    """Parses the command line and serves until SIGINT or SIGTERM."""
    log_to_stderr()
    logging.getLogger("train").setLevel(logging.INFO)
    with user_errors_exit(interrupted="stopped"):
        args = tyro.cli(joined_help(Args), prog=program("train.serve"), use_underscores=True)
        load_parts(*args.parts)
        # Before the policy is loaded: a missing package shows at once.
        module = import_server()
        config = ServeConfig(
            parse_keys(args.keys), args.execute_horizon, args.ensemble, args.protocol, args.delay
        )
        if args.real_time_chunking:
            _check_continues(config)
        if args.json and args.benchmark is None:
            raise UserError(
                where="--json",
                expected="--benchmark, whose result it prints",
                found="no --benchmark",
                remedy="Add --benchmark, or leave it out.",
            )
        if args.benchmark is not None:
            _check_serves_nobody(args)
            _benchmark(args, config, args.benchmark)
            return
        api_key = read_api_key(args.api_key_file)
        config.check_api_key(api_key)
        # Bound before the policy is loaded, so a port in use shows in a second and not in a minute.
        with bind(args.host, args.port) as listener:
            if api_key is None and not is_local(listener):
                _log.warning(
                    "every machine that reaches %s may use the policy: set %s, or give "
                    "--api_key_file",
                    args.host,
                    VARIABLE,
                )
            policy = _load(args, config)
            # Compiles the token encoder as well, so the first client does not wait for it.
            policy.warm_up()
            server = module.PolicyServer(policy, config, api_key)
            stopped_by = asyncio.run(_serve(args, policy.address, server, listener))
        # Only where a client called: NaN says nothing.
        if policy.latency.num_calls:
            _log.info("inference: %s", policy.latency)
        if server.is_answering:
            # A thread inside a prediction cannot be interrupted, and interpreter exit might wait
            # for it.
            _end_at_once(stopped_by)
        if stopped_by is signal.SIGINT:
            # Like any interrupted command, with its exit status.
            raise KeyboardInterrupt


def _benchmark(args: Args, config: ServeConfig, num_calls: int) -> None:
    from train.serve.serve_benchmark import measure  # noqa: PLC0415  (an extra)

    measurement = measure(_load(args, config), config, num_calls)
    stream = sys.stderr if args.json else sys.stdout
    console = Console(file=stream, width=None if stream.isatty() else 100)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    for row in measurement.rows():
        table.add_row(*row)
    console.print(table)
    if args.json:
        values = {"first_ratio": measurement.first_ratio} | dataclasses.asdict(measurement)
        rounded = {key: round(value, _DIGITS) for key, value in values.items()}
        sys.stdout.write(json.dumps(rounded) + "\n")


def _check_serves_nobody(args: Args) -> None:
    """Raises an error for flags of a server, which `--benchmark` does not start."""
    flags = [n for n in ("host", "port", "api_key_file") if getattr(args, n) != getattr(Args, n)]
    if flags:
        raise UserError(
            where="--benchmark",
            expected="none of --host, --port and --api_key_file",
            found=", ".join(f"--{name} {getattr(args, name)}" for name in flags),
            remedy="Its client is on this machine, on a free port: leave them out.",
        )


def parse_keys(pairs: tuple[str, ...]) -> dict[str, str]:
    """Returns the observation by key that pairs such as `front=image_primary` give.

    Raises:
      UserError: A pair is not of the form KEY=NAME, or two have the same key or observation.
    """
    chosen: dict[str, str] = {}
    for pair in pairs:
        key, _, name = pair.partition("=")
        if not key or not name:
            raise UserError(
                where=f"--keys {pair}",
                expected="KEY=NAME",
                found=pair,
                remedy="Write, for example, --keys observation/front=image_primary.",
            )
        if key in chosen or name in chosen.values():
            raise UserError(
                where="--keys",
                expected="each key and each observation once",
                found=" ".join(pairs),
                remedy=f"Keep one of those with {key if key in chosen else name}.",
            )
        chosen[key] = name
    return chosen


def _check_continues(config: ServeConfig) -> None:
    """Raises an error where `--real_time_chunking` would have no effect."""
    if config.is_stepwise and not config.delay:
        raise UserError(
            where="--real_time_chunking",
            expected="replies with chunks, or a --delay",
            found="replies with one action, which waits for predictions",
            remedy="Add --execute_horizon N --delay D, or leave it out.",
        )


def _load(args: Args, config: ServeConfig) -> Policy:
    guided = args.real_time_chunking or bool(config.delay)
    policy_config = PolicyConfig(seed=args.seed, resize=args.resize, real_time_chunking=guided)
    checkpoint = read_run(args.run, args.step)
    # Before an encoder's weights are loaded, which may take minutes.
    _check_shown(args, config, checkpoint)
    encoder = encoder_of(checkpoint, args.dataset, source=args.weights)
    policy = Policy(checkpoint, args.dataset, policy_config, encoder)
    # Made for its checks: an unusable horizon is an error now, not at the first message.
    config.make_execution(policy)
    if policy.window_size > 1 and not config.is_stepwise:
        _log.warning(
            "the policy reads %d steps at once, one per message: a client that calls at every n-th "
            "step gives it steps that lie n apart. Exact: --execute_horizon N, called every step",
            policy.window_size,
        )
    keeping = [r.dim for r in policy.spec.data.gripper_rules if isinstance(r, GripperHysteresis)]
    if keeping and not config.is_stepwise:
        _log.warning(
            "a gripper keeps its last command (%s), which is known only if a client executes all "
            "actions of each chunk. Exact: --execute_horizon N, called every step",
            ", ".join(keeping),
        )
    for key, leaf in expected_keys(policy, config).items():
        _log.info("  %s %s", key, describe_one(leaf))
    return policy


def _check_shown(args: Args, config: ServeConfig, checkpoint: Checkpoint) -> None:
    """Checks that clients can show the policy what it expects."""
    expected = shown_observations(checkpoint, args.dataset)
    unknown = sorted(set(config.keys.values()) - set(expected))
    if unknown:
        raise UserError(
            where="--keys",
            expected=f"observations of the policy: {', '.join(expected)}",
            found=", ".join(unknown),
            remedy="Use only these.",
        )
    if checkpoint.config.data.conditioning == "image_conditioned":
        raise UserError(
            where=args.run,
            expected="a policy that takes an instruction",
            found="one that takes goal images",
            remedy="The protocol has no goal images: use train.policy.Policy from Python.",
        )


async def _serve(
    args: Args, address: str | None, server: Any, listener: socket.socket
) -> signal.Signals | None:
    """Serves until a signal arrives, and returns it."""
    stop = asyncio.Event()
    received: list[signal.Signals] = []

    # The handler only records: the server ends its connections properly.
    def stop_by(number: signal.Signals) -> None:
        received.append(number)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop_by, number)

    def ready(port: int) -> None:
        _log.info("serving %s at ws://%s:%d", address or args.run, args.host, port)

    await server.run(listener, stop, ready)
    return received[0] if received else None


def _end_at_once(stopped_by: signal.Signals | None) -> NoReturn:
    """Ends the process in the middle of a prediction, which cannot be interrupted otherwise."""
    _log.warning("stopped in the middle of a prediction")
    # `os._exit` flushes nothing.
    logging.shutdown()
    os._exit(EXIT_INTERRUPTED if stopped_by is signal.SIGINT else 0)


if __name__ == "__main__":
    main()
