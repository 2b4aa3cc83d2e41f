# make setup | demo | audit | eighty | demo-classification | demo-face | bench | test |
# test-oldest | lint | clean.
# PYTHON= picks the interpreter, VENV= an environment you have already.
PYTHON ?= python3
VENV ?= .venv
# Python on one thread or two. One for requests and probes, whose many small operations wait for a second
# one longer than it helps; two for whole trainings, and they sleep while they wait: spinning, they
# slow down whatever shares the cores many times over (docs/your_data.md, section 5).
ON = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$(1)} OMP_WAIT_POLICY=$${OMP_WAIT_POLICY:-passive} \
	$(VENV)/bin/python
ONE = $(call ON,1)
TWO = $(call ON,2)
CONSTRAINTS ?= constraints.txt
PIP = $(VENV)/bin/python -m pip install --progress-bar off -c $(CONSTRAINTS)
# The stamps say what is installed in the environment.
RUNTIME = $(VENV)/.mmgslora-runtime
TEST = $(VENV)/.mmgslora-test
START := $(shell date +%s)

.PHONY: setup demo forget deepen oracle audit audit-oracle attack attack-64 eighty \
	demo-classification demo-face bench test test-oldest lint clean
setup: $(RUNTIME)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(RUNTIME): setup.py $(CONSTRAINTS) requirements/runtime.txt requirements/mmcv.txt | $(VENV)/bin/python
	$(PIP) 'setuptools<82' wheel
	$(PIP) -r requirements/mmcv.txt -e .
	touch $@

$(TEST): $(RUNTIME) requirements/test.txt
	$(PIP) -r requirements/test.txt
	touch $@

# --resume: what was interrupted goes on, what is finished shows its table again.
FORGOT = work_dirs/gslora_shapes_forget
DEEPENED = work_dirs/undo_shapes_forget
demo: forget
	@# Not again: what make audit has measured since is more.
	test -f $(FORGOT)/audit.json || $(ONE) tools/audit.py $(FORGOT) --seeds 0 \
		--measures outcomes localisation probe
	$(ONE) tools/report.py $(FORGOT)
	@echo "make demo took $$(( $$(date +%s) - $(START) )) s, set-up included."

forget: $(RUNTIME)
	$(TWO) tools/train.py configs/shapes/deformable-detr_shapes.py --resume
	$(ONE) tools/train.py configs/gslora_shapes_forget.py --resume

# What only a comparison with a model that never saw the classes can say, of the demo's model and of the
# same deepened (noised, distilled from itself). make -j 2 audit does two things at once throughout;
# several audits of one run may.
ORACLE = work_dirs/deformable-detr_shapes_oracle/epoch_24.pth
ATTACK = $(ONE) tools/audit.py $(DEEPENED) --oracle $(ORACLE) --models
MEASURES = outcomes localisation probe relearning new_head
audit: further-unlearned further-oracle
	$(ONE) tools/report.py $(FORGOT)
	$(ONE) tools/report.py $(DEEPENED)
	@echo "make audit took $$(( $$(date +%s) - $(START) )) s."

deepen: forget
	$(ONE) tools/train.py configs/undo_shapes_forget.py --resume

oracle: $(RUNTIME)
	$(TWO) tools/train.py configs/shapes/deformable-detr_shapes_oracle.py --resume

audit-oracle: forget oracle
	$(ONE) tools/audit.py $(FORGOT) --oracle $(ORACLE) --measures outcomes localisation probe
	$(ONE) tools/audit.py $(FORGOT) --oracle $(ORACLE) --models oracle --measures $(MEASURES)

attack: deepen oracle
	$(ATTACK) unlearned --measures outcomes localisation probe relearning/k16 new_head

attack-64: deepen audit-oracle
	$(ATTACK) unlearned --measures relearning/k64

# Two draws more of whatever the first three do not decide.
further-%: attack attack-64
	$(ATTACK) $* --known $(FORGOT)/audit.json --measures $(MEASURES)

# The COCO protocol on eighty generated classes: seven requests of ten. The detector takes an hour.
eighty: $(RUNTIME)
	$(TWO) tools/train.py configs/eighty/deformable-detr_eighty.py --resume
	$(ONE) tools/train.py configs/gslora_eighty_forget.py --resume
	$(ONE) tools/report.py work_dirs/gslora_eighty_forget

demo-classification: $(RUNTIME)
	$(TWO) tools/train.py configs/classification/vit_shapes.py --resume
	$(ONE) tools/train.py configs/classification/gslora_classification_forget.py --resume
	$(ONE) tools/report.py work_dirs/gslora_classification_forget
	@echo "make demo-classification took $$(( $$(date +%s) - $(START) )) s."

demo-face: $(RUNTIME)
	$(TWO) tools/train.py configs/face/face-transformer_generated.py --resume
	$(ONE) tools/train.py configs/face/gslora_face_forget.py --resume
	$(ONE) tools/report.py work_dirs/gslora_face_forget
	@echo "make demo-face took $$(( $$(date +%s) - $(START) )) s."

# A step and a request beside the obvious alternatives: docs/results/speed.json, speed.md. On an idle
# machine only.
bench: $(TEST)
	$(TWO) tools/train.py configs/shapes/deformable-detr_shapes.py --resume
	$(TWO) tools/train.py configs/classification/vit_shapes.py --resume
	OMP_NUM_THREADS=2 OMP_WAIT_POLICY=active $(VENV)/bin/python benchmarks/speed.py

# Two processes of one thread each; the tests of one file stay together, for their fixtures' sake.
test: $(TEST)
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(VENV)/bin/python -m pytest -n 2 --dist loadfile \
		--no-loadscope-reorder

# The same suite with the oldest supported versions, in an environment of its own.
test-oldest:
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt

lint: $(TEST)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# What the demos and the audit made, for a start from nothing.
clean:
	rm -rf work_dirs/deformable-detr_shapes work_dirs/gslora_shapes_forget \
		work_dirs/deformable-detr_shapes_oracle work_dirs/undo_shapes_forget work_dirs/vit_shapes \
		work_dirs/gslora_classification_forget work_dirs/face-transformer_generated \
		work_dirs/gslora_face_forget work_dirs/deformable-detr_eighty work_dirs/gslora_eighty_forget
