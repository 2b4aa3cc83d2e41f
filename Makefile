# make setup | demo | audit | deepen | eighty | demo-classification | demo-face | bench | test |
# test-oldest | lint | clean.
# PYTHON= picks the interpreter, VENV= an environment you have already.
PYTHON ?= python3
VENV ?= .venv
# One thread for requests and audits, whose many small operations wait for a second one longer than it
# helps; two for training from nothing, and they sleep while they wait: spinning, they slow down
# whatever shares the cores many times over (docs/your_data.md, section 5).
RUN = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=$${OMP_WAIT_POLICY:-passive} \
	$(VENV)/bin/python
TRAIN = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} OMP_WAIT_POLICY=$${OMP_WAIT_POLICY:-passive} \
	$(VENV)/bin/python tools/train.py
CONSTRAINTS ?= constraints.txt
PIP = $(VENV)/bin/python -m pip install --progress-bar off -c $(CONSTRAINTS)
# The stamps say what is installed in the environment.
RUNTIME = $(VENV)/.mmgslora-runtime
TEST = $(VENV)/.mmgslora-test
START := $(shell date +%s)

.PHONY: setup demo audit deepen eighty demo-classification demo-face bench test test-oldest lint clean
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

# --resume: a demo that was interrupted goes on, one that is finished shows its table again.
demo: $(RUNTIME)
	$(TRAIN) configs/shapes/deformable-detr_shapes.py --resume
	$(RUN) tools/train.py configs/gslora_shapes_forget.py --resume
	@# Not again: what make audit has measured since is more.
	test -f work_dirs/gslora_shapes_forget/audit.json || $(RUN) tools/audit.py \
		work_dirs/gslora_shapes_forget --seeds 0 \
		--measures outcomes localisation probe
	$(RUN) tools/report.py work_dirs/gslora_shapes_forget
	@echo "make demo took $$(( $$(date +%s) - $(START) )) s, set-up included."

# The demo's model, deepened (noised, distilled from itself), and what only a comparison with a model
# that never saw the classes can say. The second audit takes over what the first measured of the oracle.
ORACLE = work_dirs/deformable-detr_shapes_oracle/epoch_24.pth
audit: deepen
	$(TRAIN) configs/shapes/deformable-detr_shapes_oracle.py --resume
	$(RUN) tools/audit.py work_dirs/gslora_shapes_forget --oracle $(ORACLE) \
		--measures outcomes localisation probe
	$(RUN) tools/report.py work_dirs/gslora_shapes_forget
	$(RUN) tools/audit.py work_dirs/undo_shapes_forget --oracle $(ORACLE) \
		--models unlearned oracle --known work_dirs/gslora_shapes_forget/audit.json
	$(RUN) tools/report.py work_dirs/undo_shapes_forget

deepen: demo
	$(RUN) tools/train.py configs/undo_shapes_forget.py --resume

# The COCO protocol on eighty generated classes: seven requests of ten. The detector takes an hour.
eighty: $(RUNTIME)
	$(TRAIN) configs/eighty/deformable-detr_eighty.py --resume
	$(RUN) tools/train.py configs/gslora_eighty_forget.py --resume
	$(RUN) tools/report.py work_dirs/gslora_eighty_forget

demo-classification: $(RUNTIME)
	$(TRAIN) configs/classification/vit_shapes.py --resume
	$(RUN) tools/train.py configs/classification/gslora_classification_forget.py --resume
	$(RUN) tools/report.py work_dirs/gslora_classification_forget
	@echo "make demo-classification took $$(( $$(date +%s) - $(START) )) s."

demo-face: $(RUNTIME)
	$(TRAIN) configs/face/face-transformer_generated.py --resume
	$(RUN) tools/train.py configs/face/gslora_face_forget.py --resume
	$(RUN) tools/report.py work_dirs/gslora_face_forget
	@echo "make demo-face took $$(( $$(date +%s) - $(START) )) s."

# A step and a request beside the obvious alternatives: docs/results/speed.json, speed.md. On an idle
# machine only.
bench: $(TEST)
	$(TRAIN) configs/shapes/deformable-detr_shapes.py --resume
	$(TRAIN) configs/classification/vit_shapes.py --resume
	$(RUN) benchmarks/speed.py

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
