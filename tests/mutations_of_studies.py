"""The mistakes that tests/mutants.py makes in studies, plans, counts, ranges and the `lm` command; see mutations.py."""

from tests.mutations import of

SWEEPS = of(
    "study/test_sweep",
    *("intervals_and_p_are_corrected_for_the_choice_of_the_best", "no_arm_is_run_twice"),
    "what_is_drawn_again_is_drawn_anew_and_the_others_keep_their_names",
)
FORKED = ("tests/study/test_forkserver.py",)
FILES = ("tests/launch/test_files.py",)

TESTS = {
    "lm/study/statistics.py": ("tests/study/test_statistics.py",)
    + of("study/test_against_itself", "the_choice_of_the_best_is_corrected_for"),
    "lm/study/best.py": SWEEPS,
    "lm/study/sweep.py": SWEEPS,
    "lm/study/runner.py": of("study/test_runner", "a_folder_of_a_run_is_not_a_study_s_nor_the_other_way_round")
    + ("tests/study/test_executors.py",),
    "lm/study/forkserver.py": FORKED,
    "lm/study/executors.py": (*FORKED, "tests/study/test_executors.py"),
    "launch/study.py": ("tests/study/test_executors.py",),
    "lm/study/worker.py": FORKED,
    "lm/machine/hardware.py": FORKED,
    "lm/model/count.py": of(
        "model/test_encoder",
        *("flops_of_a_row_are_those_of_what_each_side_reads", "flops_are_those_of_the_compiled_forward_pass"),
    ),
    "lm/experiment.py": ("tests/test_bounds.py",)
    + of("model/test_encoder", "flops_are_those_of_the_compiled_forward_pass"),
    "lm/plan/search.py": of(
        "plan/test_analytic",
        *("what_fits_comes_first", "what_the_compiler_refuses_is_not_said_to_fit"),
        "what_only_the_compiler_knows_is_tried_with_the_best",
    ),
    "lm/plan/advice.py": of("plan/test_analytic", "nothing_fits_is_said_only_where_the_search_says_so_too"),
    "lm/plan/decoding.py": ("tests/plan/test_decoding.py", "tests/launch/test_plan.py"),
    "launch/decoding.py": ("tests/launch/test_plan.py",),
    "lm/legal.py": ("tests/launch/test_devices.py",),
    "launch/control.py": ("tests/launch/test_control.py",),
    "launch/slurm.py": (*FILES, "tests/launch/test_devices.py", "tests/launch/test_control.py"),
    "launch/gke.py": (*FILES, "tests/launch/test_devices.py", "tests/launch/test_control.py"),
    "launch/tpu_vm.py": (*FILES, "tests/launch/test_devices.py"),
    "launch/catalogue.py": ("tests/launch/test_list.py",),
}

BY_FILE: dict[str, tuple[tuple[str, str, str], ...]] = {
    "lm/study/statistics.py": (
        ("an interval does not know of the other arms", "ALPHA / (2 * among)", "ALPHA / 2"),
        ("a test that there is not does not count", "[1.0 if math.isnan(p) else p for p in tests]", "tests"),
        ("pairs are not corrected", "zip(pairs, holm([1.0", "zip(pairs, list([1.0"),
    ),
    "lm/study/best.py": (
        ("the best is chosen from itself", "among=len(begun)", "among=1"),
        ("any p tells an arm from the best", "not one.p < ALPHA", "not one.p < 1"),
    ),
    "lm/study/space.py": (
        ("draws may be there twice", "setdefault(tuple(drawn.items()), ", "setdefault(number, "),
        ("a small space is not drawn whole", "if size(space) <= count else", "if False else"),
    ),
    "lm/study/sweep.py": (("arms are numbered anew", "in self._fixed.items()", "in enumerate(self._fixed.values())"),),
    "lm/study/runner.py": (
        ("a run's folder is taken", 'if (folder / "experiment.json").exists():', "if False:"),
        ("looks take what they take", "max(LOOK_SECONDS, (", "min(LOOK_SECONDS, ("),
        (
            "reports wait for the next look",
            "return pause if _write_reports(results, folder, REPORT_SECONDS) else 0.0",
            "return pause",
        ),
    ),
    "lm/study/forkserver.py": (
        ("threads are not counted", 'return len(os.listdir("/proc/self/task")) == 1', "return True"),
        (
            "an accelerator is overlooked",
            'return asked == "cpu" or not asked and not _has_accelerators()',
            "return True",
        ),
        ("JAX's devices are overlooked", "if xla_bridge.backends_are_initialized():", "if False:"),
        ("other settings are overlooked", "if settings() != imported_with:", "if False:"),
        ("signals are those of the server", "for number, handler in handlers.items():", "for number, handler in ():"),
        ("a process has the server's socket", "                channel.close()\n", ""),
        ("what is printed last is lost", "        sys.stdout.flush()\n", ""),
        ("it is not killed", "signal.pidfd_send_signal(self._process.fileno(), signal.SIGKILL)", "pass"),
    ),
    "lm/study/executors.py": (
        ("no process is forked", "if self.server and (forked", "if False and (forked"),
        ("memory is asked for one alone", "self.fit([*running, group])", "self.fit([group])"),
        ("groups are halved that do not fit", "if not fit(halves):", "if False:"),
        ("one run of a process is in memory", "(SPARE + len(group) - 1)", "SPARE"),
        ("a run takes what it cannot do without", "(SPARE + len(group) - 1)", "len(group)"),
    ),
    "launch/study.py": (
        ("accelerators have two processes", "forkserver.only_cpus(args.devices) and ", ""),
        ("one core has two processes", " and hardware.cores() > 1", ""),
        ("halves of a stack round otherwise", "if share and not vmap", "if share"),
    ),
    "lm/machine/hardware.py": (
        (
            "a study's processes are told its platform",
            '    os.environ.pop("JAX_PLATFORMS", None)\n    if before',
            "    if before",
        ),
        ("and lose theirs", "if before is not None:", "if False:"),
    ),
    "lm/model/count.py": (
        ("cross-attention's keys are the decoder's", "encoder_length if name in", "length if name in"),
        ("the decoder looks at itself twice", "slot.mixer.flops(encoder_length)", "slot.mixer.flops(length)"),
    ),
    "lm/experiment.py": (
        ("targets are as long as inputs", "flops_per_row(self.model, tokens, ", "flops_per_row(self.model, encoder, "),
        ("numbers are not checked", "        check(self)\n        self._check_mesh()", "        self._check_mesh()"),
    ),
    "lm/bounds.py": (
        ("an end that is excluded is legal", "(self.above and number == self.low)", "False"),
        ("nan is a number", "if not math.isfinite(number) and number != self.low:", "if math.isinf(number):"),
        ("a fraction is a whole number", "not isinstance(number, numbers.Integral)", "False"),
        ("bounds of an alternative are not found", "own or [found", "own or [] and [found"),
    ),
    "lm/plan/search.py": (
        ("what does not fit may come first", "return not candidate.fits, not", "return False, not"),
        ("what the compiler refused fits", "not self.failure and self.best.fits", "self.best.fits"),
        ("vector memory is not tried", "for others in (other_blocks, more_vmem):", "for others in (other_blocks,):"),
        ("what is pasted has less vector memory", "block={e.compute.block}{vmem})", "block={e.compute.block})"),
    ),
    "lm/plan/moved.py": (
        ("a slice reads the whole", "yield sum(a.bytes for a in user.results)", "yield whole.bytes"),
        ("an update writes the whole", "return sum(a.bytes for a in update.results)", "return 1e9"),
        ("padding is read", "part * whole.bytes / padded", "part"),
        ("copies in the background are free", "copy.bytes * (copy.main + ", "0.0 * (copy.main + "),
    ),
    "lm/plan/decoding.py": (
        ("a cache is replicated", 'for axis in ("heads", "kv_heads", "mlp")', 'for axis in ("heads", "mlp")'),
        ("a step reads the embedding", "read=held - table + cache", "read=held + cache"),
        ("any context will do", "if serving.context > cfg.context:", "if False:"),
        ("a prefill is alone on the device", 'self.prefill.memory["peak"] + self.cache', 'self.prefill.memory["peak"]'),
        ("what is too large is compiled", "if held + cache > topology.hbm:", "if False:"),
    ),
    "launch/decoding.py": (
        ("the mesh to train on is taken", "topology.devices) if is_set else {}", "topology.devices)"),
        ("other fields of a file are ignored", 'not field.startswith("mesh.") or', "False and"),
    ),
    "lm/plan/advice.py": (("the search is not asked", "in candidates(experiment, topology) if", "in [] if"),),
    "lm/legal.py": (
        ("slices are not replicas", '({"replica": slices} if slices > 1 else {}) | ', ""),
        ("slices are not looked at", 'if mesh.get("replica", 1) % slices:', "if False:"),
    ),
    "lm/run/smoke.py": (
        ("sizes are not rounded", "1 << (size.bit_length() - 1)", "size"),
        ("first layers are left out", "len(model.first_layers) + len(model.pattern)", "len(model.pattern)"),
        ("the warm-up stays", '{"warmup_steps": steps // 4, ', "{"),
    ),
    "launch/control.py": (
        (
            "a job that is there is submitted again",
            "        if not state:\n            if not job.command:",
            "        if True:\n            if not job.command:",
        ),
        ("a tool's log is what it says", 'LOGGED.sub("", done.stderr).strip() or ', ""),
        ("a failure is no job", "if done.returncode and not (absent and absent in done.stderr):", "if False:"),
    ),
    "launch/slurm.py": (
        ("a cancelled job queues itself again", 'write_text("cancelled\\n")', "exists()"),
        ("a job that failed has completed", 'int(bool(end) and not end.startswith("COMPLETED"))', "0"),
        ("the log is printed from its beginning", "stream.seek(at)", "stream.seek(0)"),
        ("a percent sign is not escaped", "folder.replace('%', '%%')", "folder"),
        ("quotes are not escaped", """(["\\\\])'""", "([\\\\])'"),
        ("tasks may share a GPU", "and gpus != args.tasks_per_node:", "and False:"),
    ),
    "launch/gke.py": (
        ("a failed set is complete", 'return 0 if "Completed" in reached else 1', "return 0"),
        ("the log is shown once", "if restarts != shown and", "if not shown and"),
        ("dollars are not escaped", 'text.replace("$", "$$")', "text"),
        ("numbers are not quoted", "style=None if plain else", "style=None if True else"),
        ("an error of the page is restarted", '"action": "FailJobSet"', '"action": "RestartJobSet"'),
        ("slices are not counted", "(chips(topology)) * args.slices, args.slices", "(chips(topology)), 1"),
    ),
    "launch/tpu_vm.py": (("nothing is checked", "    job.check_devices(", "    str("),),
    "launch/catalogue.py": (("imports are listed again", "(id(value) not in own or name == DEFAULT)", "True"),),
    "lm/study/worker.py": (
        ("ctrl-c is two signals", "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})", "pass"),
    ),
}
