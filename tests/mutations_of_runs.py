"""The mistakes that tests/mutants.py makes in what keeps a run's work: checkpoints, folders, locks, names; see
mutations.py."""

from tests.mutations import of

TESTS = {
    "lm/train/checkpoint.py": ("tests/train/test_checkpoint.py", "tests/train/test_damage.py"),
    "lm/value.py": ("tests/test_value.py", "tests/model/test_multi_token.py"),
    "lm/page/plots.py": ("tests/page/test_plots.py", "tests/page/test_names.py"),
    "lm/page/svg.py": ("tests/page/test_names.py", "tests/page/test_plots.py"),
    "lm/page/run_report.py": ("tests/page/test_run_report.py",),
    "lm/page/run_record.py": ("tests/page/test_run_report.py", *of("pretrained/test_bad", "what_is_not_there")),
    "lm/machine/output.py": of("launch/test_main", "training_goes_on_without_its_reader"),
    "lm/machine/buckets.py": of(
        "machine/test_buckets",
        *("another_process_reads_a_mirror_of_its_own", "no_object_is_written_outside_the_mirror"),
        "no_object_names_the_bucket",
    ),
    "lm/run/folder.py": ("tests/run/test_folder.py",)
    + of("run/test_lengthen", "an_arm_that_failed_at_its_start_may_be_corrected")
    + of(
        "run/test_course",
        *("a_start_that_failed_is_corrected_in_its_folder", "changed_prompts_are_drawn_again"),
    ),
    "lm/run/lengthen.py": of(
        "run/test_lengthen",
        *("a_decay_is_set_aside_and_not_lost", "what_cannot_go_on_is_refused", "the_steps_that_two_lengths_share"),
    ),
    "lm/run/prepared.py": of("run/test_together", "which_way_is_said_and_can_be_refused"),
    "lm/run/together.py": of("run/test_together", "one_program_is_separate_runs"),
    "lm/train/program.py": ("tests/train/test_program.py",)
    + of("run/test_together", "which_way_is_said_and_can_be_refused"),
    "lm/sharding/batches.py": of("sharding/test_sharding", "a_batch_is_there_when_a_cpu_has_it"),
    "lm/run/log.py": of("run/test_course", "wall_time_is_of_all_processes"),
    "launch/fields.py": of(
        "launch/test_show", "what_may_stand_in_a_field", "annotations_in_words", "a_sentinel_is_of_its_number_alone"
    ),
    "launch/show.py": ("tests/launch/test_show.py",),
    "launch/train.py": of("run/test_log", "the_last_line_says_what_the_run_is_for")
    + of("run/test_profile", "steps_that_are_none", "steps_that_the_run_has_not")
    + of("launch/test_main", "training_ends_with_what_is_next", "a_start_that_is_not_there"),
    "launch/find.py": of("launch/test_find", "a_page_by_its_path_from_anywhere", "a_study_by_its_path_is_reported")
    + of("launch/test_find", "a_page_of_the_other_kind_names_its_verb")
    + of("launch/test_main", "a_batch_that_the_devices_say", "a_start_that_is_not_there"),
    "launch/sample.py": ("tests/launch/test_sample.py",),
    "launch/__main__.py": ("tests/launch/test_help.py",) + of("launch/test_main", "a_mistake_is_one_line"),
    "launch/completion.py": of("launch/test_help", "the_shell_completes_names"),
    "lm/machine/monitor.py": of(
        "machine/test_monitor", "what_takes_long_is_said_and_for_how_long", "the_bar_counts_while_it_compiles"
    )
    + of("machine/test_monitor", "the_bar_on_a_terminal_moves"),
    "lm/run/compare.py": ("tests/run/test_compare.py",),
    "lm/train/kept.py": ("tests/train/test_kept.py",),
    "lm/run/diff.py": of("run/test_diff", "a_flag_of_the_compiler", "a_run_and_its_copy_are_the_same"),
    "lm/run/batch_diff.py": of("run/test_diff", "two_rows_swapped_at_one_step"),
    "lm/run/divergence.py": of("run/test_diff", "what_differs_behind_the_places", "an_initial_value_of_one_layer"),
    "lm/run/history.py": of("run/test_diff", "what_a_process_began_with_is_recorded", "a_flag_of_the_compiler")
    + of("run/test_lengthen", "a_longer_run_is_one_from_the_start"),
    "lm/run/replay.py": of("run/test_replay", "every_step_is_the_one_that_was_logged", "a_spike_is_said"),
    "lm/run/examine.py": of(
        "run/test_replay",
        *("each_target_s_loss_is_what_the_batch_s_is_the_sum_of", "the_gradients_are_the_step_s"),
        *("an_overflow_in_one_head", "a_poisoned_document"),
    ),
    "lm/run/replay_report.py": of(
        "run/test_replay",
        *("the_command_proves_the_step_and_writes_the_page", "an_overflow_in_one_head", "a_spike_is_said"),
        *("the_first_value_out_of_line_in_a_row", "a_step_that_the_run_has_not"),
    ),
}

BY_FILE: dict[str, tuple[tuple[str, str, str], ...]] = {
    "launch/show.py": (
        ("a field that a class has not is None", "if has(data, path) else NONE", ""),
        ("a sentinel is shown as a number", 'f" ({meaning(kind, one)})" if meaning(kind, one) else ""', '""'),
        (
            "the fields of the whole are compared",
            "one.model if isinstance(one, Experiment) else one for one in both",
            "one for one in both",
        ),
    ),
    "launch/train.py": (
        ("a reward model is sampled", 'if fills else f"lm score', 'if True else f"lm score'),
        ("what is next is not told", "print(what_next(experiment, folder))", "print()"),
        (
            "a start that is there is not",
            'folder.parent.name != "runs" or folder.exists()',
            'folder.parent.name != "runs"',
        ),
        ("a step before the first is profiled", "1 <= int(first) <=", "0 <= int(first) <="),
        ("a step behind the last is profiled", "if args.profile.stop > experiment.steps + 1:", "if False:"),
    ),
    "lm/machine/tracking.py": (
        ("a run that goes on is another one there", "if not file.is_file():", "if True:"),
        ("the steps are not told", '{"step": step, **', "{**"),
    ),
    "lm/run/profile.py": (
        ("a loop counts beside what is in it", "known[name].opcode not in CONTAINERS", "known[name].opcode"),
        ("another program's operations count", "if name in known and ", "if name not in known or "),
        ("the backward pass is the forward one", '"backward" if "transpose(" in source else ', ""),
        ("the smallest are shown", "key=lambda one: -one.nanoseconds", "key=lambda one: one.nanoseconds"),
    ),
    "lm/run/memory.py": (
        (
            "one CPU device of several",
            "return total(least(experiment, here)) * devices",
            "return total(least(experiment, here))",
        ),
        (
            "gradients and activations are added up",
            'max(parts["gradients"], parts["activations"])',
            'parts["gradients"] + parts["activations"]',
        ),
        ("a sharded state is whole on each device", "(size / step.shards for size", "(size for size"),
        (
            "what goes into the stream is counted twice",
            'set(step.kept()) - {"out", "mlp_out"}',
            "set(step.activations)",
        ),
        ("the average is forgotten", "step.trained * F32 / step.shards if e.ema else 0.0", "0.0"),
        ("what cannot fit is tried", "if (need := total(parts)) > there:", "if (need := total(parts)) < 0:"),
    ),
    "launch/fields.py": (
        ("a base class may stand there", "one.__code__.co_names == left", "one.__code__.co_names == ()"),
        (
            "a sentinel is not told",
            'own = [(f"{one.number:g}", one.means) for one in sentinels_in(hint)]',
            "own: Rows = []",
        ),
        ("names of a text are not told", "Field(one, hint, names.get(name),", "Field(one, hint, None,"),
    ),
    "launch/find.py": (
        ("a page takes the name of a module", "own if taken else plain", "plain"),
        ("what lies beside a page is not found", "sys.path.insert(0, folder)", "sys.path.count(folder)"),
        (
            "a page of a file's is not trusted",
            '    if not module.startswith("experiments.") and module not in loaded',
            "    if False",
        ),
        ("a path into the folder is a module's name always", "all(part.isidentifier() for part in parts)", "True"),
        ("a path that is not there is a module's name", " or not _exists(module)", ""),
        ("a run's folder is any folder", 'if (path / "experiment.json").is_file():', "if False:"),
        (
            "a study is not named",
            'if kind == "Experiment" and study else ""',
            'if kind == "Experiment" > study else ""',
        ),
        ("a batch is set beside the devices'", "experiment.rows_per_device == per_device > 0", "False"),
        ("what makes a start is not found", "isinstance(value, Experiment) and value.name == run", "False"),
    ),
    "launch/completion.py": (
        ("names of a page are not told apart", "if one.startswith(name)]", "]"),
        ("any file is a model", 'one.endswith(("/", suffix))', "True"),
    ),
    "lm/machine/monitor.py": (
        ("what takes long is said once", "while not over.wait(every_seconds):", "while over.wait(every_seconds):"),
        ("what is no step is not told", "{self._metrics}  [dim]{what} …[/]", "{self._metrics}"),
        ("the bar does not count", 'if task.fields["now"]:', "if True:"),
    ),
    "lm/run/compare.py": (
        ("runs of other experiments are seeds", '"seed" in differ and differ <= SEEDED', '"seed" in differ'),
        ("runs under way are seeds", "other.finished and ", ""),
        ("the noise is of one run", "math.hypot(best.deviation(key), second.deviation(key))", "best.deviation(key)"),
        ("steps of other batches are laid over one another", "(1 if by_step else batch)", "1"),
        (
            "the largest loss is the best",
            "sign = -1 if measure.higher_is_better else 1",
            "sign = 1 if measure.higher_is_better else -1",
        ),
    ),
    "lm/train/kept.py": (
        ("the best is the worst", "return min(scores,", "return max(scores,"),
        ("a step that is not kept is read", "not which.isdecimal() or int(which) not in kept", "not which.isdecimal()"),
    ),
    "lm/run/extra_evals.py": (
        ("another method asks what is trained on", "one.sources or e.data.mixture.sources", "e.data.mixture.sources"),
        ("what training froze is the reference", "self.frozen, most_tokens, source)", "frozen, most_tokens, source)"),
    ),
    "lm/model/compute.py": (
        ("a CPU has vector memory", 'self.scoped_vmem if backend == "tpu" else 0', "self.scoped_vmem"),
    ),
    "lm/run/together.py": (("a turn is a step", "whole=not vmapped", "whole=False"),),
    "lm/run/heldout.py": (
        ("batches behind a large one go before it", "i == len(kept) and self._bytes", "self._bytes"),
        ("what was kept is read again", "enumerate(batches_from(len(kept)), len(kept))", "enumerate(batches_from(0))"),
        ("all is kept", "self._bytes + size <= KEPT_BYTES", "True"),
    ),
    "lm/run/prepared.py": (
        ("other held-out rows are taken for these", "if like and data.same_heldout(like.data):", "if like:"),
        ("each run reads its held-out rows", "if like and data.same_heldout(like.data):", "if False:"),
    ),
    "lm/run/harness.py": (
        ("a text gets no bos", "if self.beginning.every else", "if False else"),
        ("a text that has its bos gets another", "ids[1:] if ids[:1] == [self.beginning.id] else ids", "ids"),
        (
            "the first window has two",
            "[self._prefix(), *self._without_prefix(text)]",
            "[self._prefix(), *self.encode(text)]",
        ),
        ("one greedy token is enough", "all(map(self._is_greedy, scored))", "any(map(self._is_greedy, scored))"),
        ("tokens are lost on the right", "(before + after)[-self.length - 1 :]", "(before + after)[: self.length + 1]"),
        ("the token without room is not certain", "FORCE = 1e9", "FORCE = 0.0"),
        ("a text goes on behind its stop string", "StopStrings(until))", "StopStrings(()))"),
    ),
    "lm/train/checkpoint.py": (
        (
            "an error in reading is damage",
            "                if not _is_damage(error):\n                    raise V",
            "                if 0:\n                    raise V",
        ),
        ("an error of the system is damage", ' and "OS error" not in rest', ""),
        ("a read is tried once", "ATTEMPTS, PAUSE_SECONDS = 3", "ATTEMPTS, PAUSE_SECONDS = 1"),
        ("a score that cannot be read is no reason to keep", "or scores[step] is None for", "for"),
        ("what is set aside is deleted at once", "int(step) <= newest", "True"),
        ("small arrays are cut for all devices", "SLICED_BYTES = 2**20", "SLICED_BYTES = 0"),
        ("no array is cut for all devices", "SLICED_BYTES = 2**20", "SLICED_BYTES = 2**30"),
    ),
    "lm/value.py": (
        ("data import modules", "        check_trusted(module)\n", ""),
        ("late fields are in old data", "LATE in field.metadata and", "False and"),
        ("an optional field's fault is not told", "if len(others) == 1:", "if len(others) == 0:"),
    ),
    "lm/page/plots.py": (
        ("the last step is not on the scale", "low + room < x < high - room), high]", "low + room < x < high - room)]"),
        ("ticks are over one another", "room = 0.09 * (high - low)", "room = 0.0"),
        ("the scale does not enclose the values", "max([most, *above[:1]])", "most"),
        ("a legend has matplotlib's formulas", "text.set_text(literal(name))", "text.set_text(name)"),
        ("ticks are formulas", "[literal(tick) for tick in ticks]", "list(ticks)"),
    ),
    "lm/page/svg.py": (
        (
            "names are changed as tags are",
            'return re.sub("<[^>]*>", lambda match: _inline(match.group(), name), text)',
            "return _inline(text, name)",
        ),
        ("a legend is cut off", "1.35 * row * legend_rows", "row"),
        ("the last tick is cut off", "max(0.0, over, ", "max(0.0, "),
    ),
    "lm/page/run_report.py": (
        (
            "throughput is of the last rows",
            "human(speed), remark",
            'human(recent(record.training, "tokens_per_second")), remark',
        ),
    ),
    "lm/page/run_record.py": (
        ("damage is not told", "if self.unreadable:", "if 0:"),
        ("runs in a folder are not named", 'if inside else ""', 'if 0 else ""'),
        ("a run of nearly that name is not named", "if near else", "if 0 else"),
    ),
    "launch/sample.py": (
        ("nothing is said before the first text", 'with waiting_aside("compiling"):', "if True:"),
        ("more is asked for than fits", "max(1, min(MOST, model.config.context - len(read)))", "MOST"),
        ("the first text is lost", "itertools.chain(first, stream)", "itertools.chain(stream)"),
    ),
    "launch/__main__.py": (
        ("a page is an unknown verb", 'if set("./:") & set(str(value)) and', "if False and"),
        ("an option that is near is not named", "if near else", "if 0 else"),
        ("the top's help is named", "self.innermost(found)", "self"),
        ("all words of a title are capitals", "title[:1].upper() + title[1:]", "title.title()"),
    ),
    "lm/machine/output.py": (("a broken pipe ends the run", "except BrokenPipeError:", "except ZeroDivisionError:"),),
    "lm/machine/locks.py": (
        ("a lease that is renewed is taken", "if now != first:", "if 0:"),
        (
            "a dead process holds its lease",
            "    except ProcessLookupError:\n        return True",
            "    except ProcessLookupError:\n        return False",
        ),
        ("a lock is not kept", "fcntl.LOCK_EX | (0 if wait", "fcntl.LOCK_SH | (0 if wait"),
        ("a lease that was taken is written over", 'if there and there["id"] != lease["id"]:', "if 0:"),
    ),
    "lm/machine/buckets.py": (
        ("a name may lead out of the folder", '("", ".", "..")', '("", ".")'),
        ("a mirror may be another process's", "fcntl.LOCK_EX | fcntl.LOCK_NB", "fcntl.LOCK_SH | fcntl.LOCK_NB"),
        ("an object names the bucket", "NOT_MIRRORED = (URL_FILE, LOCK", "NOT_MIRRORED = (LOCK"),
    ),
    "lm/run/folder.py": (
        ("a run that took a step may be replaced", "if different and not has_begun(folder)", "if different"),
        ("a failed start leaves its tokenizer", "buckets.remove(folder, *PREPARED)", "pass"),
        ("samples of other prompts stay", "buckets.remove(folder, *SAMPLES)", "pass"),
    ),
    "lm/run/diff.py": (
        ("a difference by a bit is none", "if a.losses[n] != b.losses[n]), 0)", "if 0), 0)"),
        ("who is reproduced is not looked at", "if n is None]", "if 1]"),
        (
            "the start is not compared",
            "both = sorted(first.keys() & second.keys())",
            "both = sorted(first.keys() & {2})",
        ),
    ),
    "lm/run/batch_diff.py": (
        ("rows in another order are others", "elif _permuted(x, y, rows):", "elif 0:"),
        ("the step is counted from 0", "BatchDifference(step + 1, what", "BatchDifference(step, what"),
    ),
    "lm/run/divergence.py": (
        ("the layer is not looked for", "p.tobytes() != q.tobytes()", "True"),
        (
            "a gradient that differs is not looked for",
            "for name, other in both.items() if other.any()",
            "for name, other in ()",
        ),
        ("states are not compared", "if apart or x.metrics != y.metrics", "if x.metrics != y.metrics"),
    ),
    "lm/run/history.py": (
        ("flags are no environment", 'IRRELEVANT = ("memory_bytes",)', 'IRRELEVANT = ("memory_bytes", "XLA_FLAGS")'),
        ("a machine's memory is a change", " and name not in IRRELEVANT]", "]"),
        ("the start has no checksums", '"initial": dict(initial)', '"initial": {}'),
        ("the program is not noted", '{**last, "program": fingerprint}', "last"),
    ),
    "lm/run/replay.py": (
        ("a checkpoint of the step itself is before it", "kept < step for kept", "kept <= step for kept"),
        ("every log is as it was", "if pair[0] != pair[1]}", "if 0}"),
    ),
    "lm/run/examine.py": (
        ("a target has another number than its loss", "**weights}, None)[0]", "**weights}, None)[1]['accuracy']"),
        ("the loss is in chunks, without gradients of weights", "loss_chunk=0", "loss_chunk=8"),
        ("layers are one", "layers and x.ndim and len(layers) == len(x)", "0"),
    ),
    "lm/run/replay_report.py": (
        ("a step that was not taken may be asked for", "if not 1 <= step <= most:", "if 0:"),
        ("a spike is none", "loss > SPIKE * usual", "0"),
        ("any value is out of line", "OUTLYING = 10.0", "OUTLYING = 0.1"),
        ("a log that is another proves it", "if not others and not unlike and step.n in", "if step.n in"),
    ),
    "lm/run/lengthen.py": (
        ("any run can be lengthened", "if newest <= shared:", "if 1:"),
        ("the decay's metrics are lost", "shutil.copy(", "str("),
    ),
    "lm/run/log.py": (("wall time is of the last process", "self.before + time.time()", "time.time()"),),
    "lm/sharding/batches.py": (("images are still copied", "jax.block_until_ready(placed)", "placed"),),
}
