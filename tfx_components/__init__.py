"""ofb-tf at production scale: the method as TFX components on Beam. Needs the extra `tfx`."""
